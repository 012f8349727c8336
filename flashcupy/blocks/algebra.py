"""Set algebra on masks: O(blocks), each distinct pair of patterns combined once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.lists import ABSENT, FULL, BlockLists, assemble, entries, sorted_unique


def intersection(a: BlockLists, b: BlockLists) -> BlockLists:
    """Return what both masks see."""
    (keys_a, ids_a), (keys_b, ids_b) = entries(a), entries(b)
    keys, at_a, at_b = np.intersect1d(keys_a, keys_b, assume_unique=True, return_indices=True)
    return _combine(a, b, keys, ids_a[at_a], ids_b[at_b], np.bitwise_and)


def union(a: BlockLists, b: BlockLists) -> BlockLists:
    """Return what either mask sees."""
    entries_a, entries_b = entries(a), entries(b)
    keys = sorted_unique(np.concatenate([entries_a[0], entries_b[0]]))
    return _combine(a, b, keys, _ids_at(keys, *entries_a), _ids_at(keys, *entries_b), np.bitwise_or)


def complement(a: BlockLists) -> BlockLists:
    """Return what the mask does not see, inside the shape."""
    keys, ids = entries(a)
    everywhere = np.full(a.grid.cells, FULL, np.int32)
    everywhere[keys] = np.where(ids == FULL, ABSENT, ids)
    kept = np.flatnonzero(everywhere != ABSENT)
    return assemble(a.grid, kept, everywhere[kept], ~a.bits)


def _ids_at(keys: np.ndarray, own_keys: np.ndarray, own_ids: np.ndarray) -> npt.NDArray[np.int32]:
    ids = np.full(len(keys), ABSENT, np.int32)
    ids[np.searchsorted(keys, own_keys)] = own_ids
    return ids


def _combine(
    a: BlockLists, b: BlockLists, keys: np.ndarray, ids_a: np.ndarray, ids_b: np.ndarray, op: Callable[..., np.ndarray]
) -> BlockLists:
    width = len(b.bits) + 2
    pairs, pair_of = np.unique((ids_a.astype(np.int64) + 2) * width + (ids_b + 2), return_inverse=True)
    pair_a, pair_b = np.divmod(pairs, width)
    bits = op(bitops.with_constants(a.bits)[pair_a - 2], bitops.with_constants(b.bits)[pair_b - 2])
    return assemble(a.grid, keys, pair_of, bits)
