"""To dense arrays, and to and from scipy.sparse, which is imported here and only when asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid, check_block_size
from flashcupy.blocks.lists import BlockLists, assemble, entries, take_groups

_PIECE = 1 << 16  # elements at a time: each may lie in a block of its own


def to_dense(lists: BlockLists) -> npt.NDArray[np.bool_]:
    """Return bool (B, H, Sq, Sk)."""
    grid = lists.grid
    keys, ids = entries(lists)
    bits = bitops.with_constants(lists.bits)
    dense = np.zeros((grid.groups, grid.nq, grid.block_q, grid.nk, grid.block_k), np.bool_)
    for part in bitops.chunks(len(keys), grid.block_q * grid.block_k):
        group, i, j = grid.split(keys[part])
        dense[group, i, :, j, :] = bitops.unpack(bits[ids[part]], grid.block_k)
    padded = dense.reshape(grid.batch, grid.heads, grid.nq * grid.block_q, grid.nk * grid.block_k)
    return np.ascontiguousarray(padded[..., : grid.seqlen_q, : grid.seqlen_k])


def _scipy_sparse() -> Any:
    try:
        import scipy.sparse
    except ImportError as error:
        raise ImportError("scipy.sparse matrices need SciPy: pip install 'flashcupy[scipy]'") from error
    return scipy.sparse


def from_scipy(m: Any, block_size: Any) -> BlockLists:
    """Build lists from a sparse matrix or a nested list of them, ``m[b][h]``."""
    sparse = _scipy_sparse()
    table = m if isinstance(m, (list, tuple)) else [[m]]
    if not table or not all(isinstance(row, (list, tuple)) and row and len(row) == len(table[0]) for row in table):
        raise ValueError("m must be a sparse matrix, or a nested list of them with as many heads in every batch entry")
    matrices = [entry for row in table for entry in row]
    for entry in matrices:
        if not sparse.issparse(entry):
            raise TypeError(f"m must hold scipy.sparse matrices, got {type(entry).__name__}")
        if entry.ndim != 2 or entry.shape != matrices[0].shape:
            raise ValueError(f"m must hold 2-D matrices of one shape, got {matrices[0].shape} and {entry.shape}")
    if block_size is None:
        block_size = _own_block_size(matrices[0])
    grid = Grid.make(matrices[0].shape, block_size, len(table), len(table[0]))
    keys, ids, bits = [], [], []
    n_patterns = 0
    for group, entry in enumerate(matrices):
        for piece_keys, piece_ids, piece_bits in _pieces(sparse, grid, entry):
            keys.append(piece_keys + group * grid.nq * grid.nk)
            ids.append(piece_ids + n_patterns)
            bits.append(piece_bits)
            n_patterns += len(piece_bits)
    return assemble(grid, np.concatenate(keys), np.concatenate(ids), np.concatenate(bits))


def _own_block_size(m: Any) -> tuple[int, int]:
    try:
        return check_block_size(m.blocksize if m.format == "bsr" else 64)
    except ValueError:
        return 64, 64


def _pieces(sparse: Any, grid: Grid, m: Any) -> Iterator[tuple[np.ndarray, np.ndarray, npt.NDArray[np.uint32]]]:
    """Yield keys, ids and patterns of the blocks of one head, some block rows at a time."""
    if m.format == "bsr" and m.blocksize == grid.block_size and _divides(grid):
        m = _canonical(m)
        keys = np.repeat(np.arange(grid.nq), np.diff(m.indptr)) * grid.nk + m.indices
        yield keys, np.arange(len(keys)), bitops.build(len(keys), grid.block_size, lambda part: m.data[part] != 0)
        return
    m = _canonical(sparse.csr_array(m))
    bounds = m.indptr[np.minimum(np.arange(grid.nq + 1) * grid.block_q, grid.seqlen_q)]
    cuts = np.flatnonzero(np.diff(bounds // _PIECE)) + 1
    for first, last in itertools.pairwise([0, *cuts[cuts < grid.nq], grid.nq]):
        row = np.repeat(
            np.arange(first * grid.block_q, min(last * grid.block_q, grid.seqlen_q)),
            np.diff(m.indptr[first * grid.block_q : min(last * grid.block_q, grid.seqlen_q) + 1]),
        )
        part = slice(bounds[first], bounds[last])
        visible = m.data[part] != 0
        yield _blocks(grid, row[visible], m.indices[part][visible].astype(np.int64))


def _divides(grid: Grid) -> bool:
    return grid.seqlen_q % grid.block_q == 0 and grid.seqlen_k % grid.block_k == 0


def _canonical(m: Any) -> Any:
    if not m.has_canonical_format:
        m = m.copy()
        m.sum_duplicates()
    return m


def _blocks(grid: Grid, row: np.ndarray, col: np.ndarray) -> tuple[np.ndarray, np.ndarray, npt.NDArray[np.uint32]]:
    """Gather visible elements into keys, ids and patterns."""
    n_words = bitops.words(grid.block_k)
    words_per_block = grid.block_q * n_words
    key = row // grid.block_q * grid.nk + col // grid.block_k
    word, bit = np.divmod(col % grid.block_k, bitops.WORD)
    at = key * words_per_block + row % grid.block_q * n_words + word
    order = np.argsort(at, kind="stable")
    words, first = np.unique(at[order], return_index=True)
    values = np.bitwise_or.reduceat(np.uint32(1) << bit[order].astype(np.uint32), first) if len(first) else first
    keys, block = np.unique(words // words_per_block, return_inverse=True)
    bits = np.zeros((len(keys), words_per_block), np.uint32)
    bits[block, words % words_per_block] = values
    distinct, ids = bitops.dedupe(bits.reshape(len(keys), grid.block_q, n_words))
    return keys, ids, distinct


def to_scipy(lists: BlockLists, format: str | None) -> Any:
    """Return a bool sparse array, or the nested list of them for several heads."""
    sparse = _scipy_sparse()
    grid = lists.grid
    if format is None:
        format = "bsr" if _divides(grid) else "csr"
    if format == "bsr" and not _divides(grid):
        raise ValueError(f"format 'bsr' needs blocks that divide the shape, got {grid.block_size} and {grid.shape[2:]}")
    table = [
        [_matrix(sparse, take_groups(lists, np.array([b * grid.heads + h]), 1, 1), format) for h in range(grid.heads)]
        for b in range(grid.batch)
    ]
    return table[0][0] if grid.groups == 1 else table


def _matrix(sparse: Any, lists: BlockLists, format: str) -> Any:
    grid = lists.grid
    keys, ids = entries(lists)
    bits = bitops.with_constants(lists.bits)
    data = np.empty((len(keys), *grid.block_size), np.bool_)
    for part in bitops.chunks(len(keys), grid.block_q * grid.block_k):
        data[part] = bitops.unpack(bits[ids[part]], grid.block_k)
    padded = (grid.nq * grid.block_q, grid.nk * grid.block_k)
    indptr = lists.full_indptr + lists.partial_indptr
    m = sparse.bsr_array((data, keys - grid.row_of(keys) * grid.nk, indptr), shape=padded, blocksize=grid.block_size)
    if format == "bsr":
        return m
    m = m.tocsr()
    m.eliminate_zeros()
    return m[: grid.seqlen_q, : grid.seqlen_k].asformat(format)
