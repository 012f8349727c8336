"""Lists from what callers have: dense block masks, CSR, id tables, predicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import algebra
from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid, batch_and_heads
from flashcupy.blocks.host import bool_array, check_shape, int_array, pattern_array
from flashcupy.blocks.lists import FULL, BlockLists, assemble, broadcast_groups, entries


def full_blocks(grid: Grid, keys: npt.NDArray[np.int64]) -> BlockLists:
    """Build lists of FULL blocks from ascending, distinct keys."""
    no_bits = np.empty((0, grid.block_q, bitops.words(grid.block_k)), np.uint32)
    return assemble(grid, keys, np.full(len(keys), FULL, np.int32), no_bits)


def from_blocks(blocks: Any, shape: Any, block_size: Any) -> BlockLists:
    """Build lists from bool (..., nq, nk)."""
    visible = bool_array("blocks", blocks)
    grid = Grid.make(shape, block_size, *batch_and_heads("blocks", visible.shape[:-2]))
    check_shape("blocks", visible, (*visible.shape[:-2], grid.nq, grid.nk))
    return full_blocks(grid, np.flatnonzero(visible))


def from_ids(ids: Any, shape: Any, counts: Any, block_size: Any) -> BlockLists:
    """Build lists from block ids (..., nq, K) in any order, negative where unused."""
    table = int_array("ids", ids)
    grid = Grid.make(shape, block_size, *batch_and_heads("ids", table.shape[:-2]))
    check_shape("ids", table, (*table.shape[:-2], grid.nq, *table.shape[-1:]))
    width = table.shape[-1]
    used = table >= 0
    if counts is not None:
        valid = int_array("counts", counts)
        check_shape("counts", valid, table.shape[:-1])
        if ((valid < 0) | (valid > width)).any():
            raise ValueError(f"counts must lie in [0, {width}], got [{valid.min()}, {valid.max()}]")
        used &= np.arange(width) < valid[..., None]
    cols = table[used]
    if cols.max(initial=-1) >= grid.nk:
        raise ValueError(f"ids must be below the {grid.nk} block columns of the mask, got {cols.max()}")
    rows = np.repeat(np.arange(grid.rows), used.reshape(grid.rows, width).sum(axis=1))
    keys = np.sort(rows * grid.nk + cols)
    repeats = keys[1:][np.diff(keys) == 0]
    if repeats.size:
        group, i, j = grid.split(repeats[:1])
        b, h = divmod(int(group[0]), grid.heads)
        raise ValueError(f"ids must be distinct in a row, got {j[0]} twice in batch {b}, head {h}, block row {i[0]}")
    return full_blocks(grid, keys)


def from_csr(
    indptr: Any, indices: Any, shape: Any, *, block_size: Any, batch: Any, heads: Any, partial: Any, bits: Any
) -> BlockLists:
    """Build lists from compressed block rows, some of them PARTIAL."""
    grid = Grid.make(shape, block_size, batch, heads)
    keys = _csr_keys(grid, int_array("indptr", indptr), int_array("indices", indices))
    if (partial is None) != (bits is None):
        missing, given = ("bits", "partial") if bits is None else ("partial", "bits")
        raise ValueError(f"{missing} is None, but {given} is given: partial and bits go together")
    if partial is None:
        return full_blocks(grid, keys)
    is_partial = bool_array("partial", partial)
    check_shape("partial", is_partial, keys.shape)
    patterns = _patterns(grid, bits, int(is_partial.sum()))
    ids = np.full(len(keys), FULL)
    ids[is_partial] = np.arange(len(patterns))
    return assemble(grid, keys, ids, patterns)


def _csr_keys(grid: Grid, indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    check_shape("indptr", indptr, (grid.rows + 1,))
    if indices.ndim != 1:
        raise ValueError(f"indices must be 1-D, got shape {indices.shape}")
    if indptr[0] != 0 or indptr[-1] != len(indices):
        raise ValueError(f"indptr must rise from 0 to the {len(indices)} indices, got {indptr[0]} to {indptr[-1]}")
    falls = np.flatnonzero(np.diff(indptr) < 0)
    if falls.size:
        at = falls[0]
        raise ValueError(f"indptr must not fall, got {indptr[at]} before {indptr[at + 1]}")
    if indices.size and (indices.min() < 0 or indices.max() >= grid.nk):
        raise ValueError(f"indices must lie in [0, {grid.nk}), got [{indices.min()}, {indices.max()}]")
    rows = np.repeat(np.arange(grid.rows), np.diff(indptr))
    keys = rows * grid.nk + indices
    wrong = np.flatnonzero(np.diff(keys) <= 0)
    if wrong.size:
        at = wrong[0]
        raise ValueError(
            f"indices must be strictly ascending in a row, got {indices[at]} before {indices[at + 1]} in row {rows[at]}"
        )
    return keys


def _patterns(grid: Grid, bits: Any, n_partial: int) -> npt.NDArray[np.uint32]:
    array = pattern_array("bits", bits)
    if array.dtype == np.uint32:
        check_shape("bits", array, (n_partial, grid.block_q, bitops.words(grid.block_k)))
        return array
    check_shape("bits", array, (n_partial, *grid.block_size))
    return bitops.build(n_partial, grid.block_size, lambda part: array[part])


def from_dense(mask: Any, block_size: Any) -> BlockLists:
    """Build lists from bool (..., Sq, Sk)."""
    visible = bool_array("mask", mask)
    if visible.ndim < 2:
        raise ValueError(f"mask must be (..., Sq, Sk), got shape {visible.shape}")
    batch, heads = batch_and_heads("mask", visible.shape[:-2])
    grid = Grid.make(visible.shape[-2:], block_size, batch, heads)
    table = visible.reshape(grid.shape)
    return from_predicate(lambda b, h, i, j: table[b, h, i, j], grid, None)


def from_predicate(f: Callable[..., Any], grid: Grid, within: BlockLists | None) -> BlockLists:
    """Evaluate ``f(b, h, i, j)`` on every block, or on those of `within`, whose patterns then apply as well."""
    block_elements = grid.block_q * grid.block_k
    if within is None:
        keys: Iterator[np.ndarray] = (np.arange(p.start, p.stop) for p in bitops.chunks(grid.cells, block_elements))
    else:
        within = broadcast_groups(within, grid.batch, grid.heads)
        candidates, _ = entries(within)
        keys = (candidates[part] for part in bitops.chunks(len(candidates), block_elements))
    lists = assemble(grid, *bitops.evaluate(grid, keys, lambda chunk: _call(f, grid, chunk)))
    return lists if within is None else algebra.intersection(lists, within)


def _call(f: Callable[..., Any], grid: Grid, keys: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    group, i, j = (part[:, None, None] for part in grid.split(keys))
    b, h = np.divmod(group, grid.heads)
    # Indices stay inside the shape, so that f may look them up in tables; assemble clears what lies outside.
    rows = np.minimum(i * grid.block_q + np.arange(grid.block_q)[:, None], grid.seqlen_q - 1)
    cols = np.minimum(j * grid.block_k + np.arange(grid.block_k), grid.seqlen_k - 1)
    visible = np.asarray(f(b, h, rows, cols))
    if visible.dtype != np.bool_:
        raise TypeError(f"f must return bool (True = visible), got dtype {visible.dtype}")
    wanted = (len(keys), *grid.block_size)
    try:
        return np.broadcast_to(visible, wanted)
    except ValueError:
        raise ValueError(f"f must return a shape that broadcasts to {wanted}, got {visible.shape}") from None
