"""Invariants of the lists, and figures about them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.lists import FULL, BlockLists, entries, transpose


def equal(a: BlockLists, b: BlockLists) -> bool:
    """Compare lists array by array, which the normal form makes the same as comparing masks."""
    arrays_a, arrays_b = a.trimmed().arrays(), b.trimmed().arrays()
    return a.grid == b.grid and all(np.array_equal(arrays_a[name], arrays_b[name]) for name in arrays_a)


def check(lists: BlockLists, transposed: BlockLists | None) -> None:
    """Raise ValueError naming the first broken invariant."""
    _raise_first(_indptr_errors(lists), _index_errors(lists), _id_errors(lists), _pattern_errors(lists))
    if transposed is not None and not equal(transposed, transpose(lists)):
        raise ValueError("the transposed lists are not those of the transposed mask")


def check_raw(lists: BlockLists) -> None:
    """Raise ValueError for lists that cannot be brought into normal form."""
    for kind in ("full", "partial"):
        listed, room = int(getattr(lists, f"{kind}_indptr")[-1]), len(getattr(lists, f"{kind}_indices"))
        if listed > room:
            name = "capacity" if kind == "full" else "partial_capacity"
            raise ValueError(
                f"the mask has {listed} {kind.upper()} blocks, and room for {room} ({name}): results of rows that it "
                "has no room for are NaN"
            )
    _raise_first(_indptr_errors(lists), _index_errors(lists), _id_errors(lists))


def _raise_first(*checks: Iterator[tuple[Any, str]]) -> None:
    for broken, message in itertools.chain(*checks):
        if broken:
            raise ValueError(message)


def _indptr_errors(lists: BlockLists) -> Iterator[tuple[Any, str]]:
    rows = lists.grid.rows
    for kind in ("full", "partial"):
        indptr, indices = getattr(lists, f"{kind}_indptr"), getattr(lists, f"{kind}_indices")
        yield indptr.dtype != np.int64 or indptr.shape != (rows + 1,), f"{kind}_indptr must be int64 ({rows + 1},)"
        yield indices.dtype != np.int32 or indices.ndim != 1, f"{kind}_indices must be int32 and 1-D"
        yield indptr[0] != 0 or (np.diff(indptr) < 0).any(), f"{kind}_indptr must rise from 0"
        yield indptr[-1] > len(indices), f"{kind}_indptr ends at {indptr[-1]}, past the {len(indices)} {kind}_indices"
    words = (lists.grid.block_q, bitops.words(lists.grid.block_k))
    yield (
        lists.bits.dtype != np.uint32 or lists.bits.shape[1:] != words,
        f"bits must be uint32 (n, {words[0]}, {words[1]})",
    )
    yield (
        lists.bits_id.dtype != np.int32 or lists.bits_id.shape != lists.partial_indices.shape,
        "bits_id must be int32 with one entry per PARTIAL block",
    )


def _index_errors(lists: BlockLists) -> Iterator[tuple[Any, str]]:
    lists, nk = lists.trimmed(), lists.grid.nk
    keys = []
    for kind in ("full", "partial"):
        indptr, indices = getattr(lists, f"{kind}_indptr"), getattr(lists, f"{kind}_indices")
        yield ((indices < 0) | (indices >= nk)).any(), f"{kind}_indices must lie in [0, {nk})"
        keys.append(np.repeat(np.arange(lists.grid.rows), np.diff(indptr)) * nk + indices)
        yield (np.diff(keys[-1]) <= 0).any(), f"{kind}_indices must be ascending and unique in a row"
    yield np.intersect1d(keys[0], keys[1], assume_unique=True).size, "a block is listed both FULL and PARTIAL"


def _id_errors(lists: BlockLists) -> Iterator[tuple[Any, str]]:
    n_stored, ids = len(lists.bits), lists.bits_id[: lists.n_partial]
    yield ((ids < 0) | (ids >= n_stored)).any(), f"bits_id must lie in [0, {n_stored})"


def _pattern_errors(lists: BlockLists) -> Iterator[tuple[Any, str]]:
    lists = lists.trimmed()
    ids = lists.bits_id
    yield len(np.unique(ids)) != len(lists.bits), "bits has a pattern that no block uses"
    yield len(bitops.dedupe(lists.bits)[0]) != len(lists.bits), "bits stores a pattern twice"
    yield not lists.bits.any(axis=(1, 2)).all(), "bits has a pattern that sees nothing"
    keys, block_ids = entries(lists)
    partial = block_ids != FULL
    pairs = np.unique(block_ids[partial] * 4 + lists.grid.edge_class(keys[partial]))
    inside, used = bitops.pack(lists.grid.inside())[pairs % 4], lists.bits[pairs // 4]
    yield (used & ~inside).any(), "bits must be 0 outside the shape"
    yield (used == inside).all(axis=(1, 2)).any(), "a PARTIAL block sees everything inside the shape: it must be FULL"


def density(lists: BlockLists) -> float:
    """Return the fraction of blocks that are visited."""
    return (lists.n_full + lists.n_partial) / max(lists.grid.cells, 1)


def stats(lists: BlockLists) -> dict[str, int | float]:
    """Return figures about the lists; see `BlockMask.stats`."""
    lists = lists.trimmed()
    grid = lists.grid
    keys, ids = entries(lists)
    group, i, j = grid.split(keys)
    scores = grid.heights()[i] * grid.widths()[j]
    in_pattern = np.bitwise_count(lists.bits).sum(axis=(1, 2), dtype=np.int64)
    visible = int(scores[ids == FULL].sum() + in_pattern[lists.bits_id].sum())
    per_row = np.diff(lists.full_indptr) + np.diff(lists.partial_indptr)
    per_column = np.bincount(group * grid.nk + j, minlength=grid.groups * grid.nk)
    return {
        "blocks": grid.cells,
        "full": lists.n_full,
        "partial": lists.n_partial,
        "empty": grid.cells - len(keys),
        "density": density(lists),
        "element_density": visible / max(grid.groups * grid.seqlen_q * grid.seqlen_k, 1),
        "visited": int(scores.sum()),
        "patterns": len(lists.bits),
        "bytes": sum(array.nbytes for array in lists.arrays().values()),
        "longest_row": int(per_row.max(initial=0)),
        "longest_column": int(per_column.max(initial=0)),
        "row_imbalance": _imbalance(per_row),
        "column_imbalance": _imbalance(per_column),
    }


def _imbalance(blocks: np.ndarray) -> float:
    """Return the most blocks over the mean; 1.0 where there are none."""
    return float(blocks.max() / blocks.mean()) if blocks.any() else 1.0
