"""Cut the same elements into other blocks: a range of rows at any alignment, or another block size."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid, check_block_size, check_count
from flashcupy.blocks.lists import ABSENT, FULL, BlockLists, assemble, entries, ragged_arange, sorted_unique


def rows(lists: BlockLists, start: Any, stop: Any) -> BlockLists:
    """Return element rows [start, stop) as lists of their own."""
    seqlen_q = lists.grid.seqlen_q
    start, stop = check_count("start", start), check_count("stop", stop)
    if not start <= stop <= seqlen_q:
        raise ValueError(f"rows must lie in the mask, 0 <= start <= stop <= {seqlen_q}, got start={start}, stop={stop}")
    return _recut(lists, dataclasses.replace(lists.grid, seqlen_q=stop - start), start)


def with_block_size(lists: BlockLists, block_size: Any) -> BlockLists:
    """Return the same mask in other blocks."""
    bq, bk = check_block_size(block_size)
    return _recut(lists, dataclasses.replace(lists.grid, block_q=bq, block_k=bk), 0)


@dataclasses.dataclass(frozen=True)
class _Axis:
    """How new blocks of an axis lie on old ones; new element x is old element ``start + x``."""

    old_block: int
    new_block: int
    start: int
    new_len: int

    def new_range(self, old: np.ndarray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First new block that each old block touches, and how many."""
        low = np.clip(old * self.old_block - self.start, 0, self.new_len)
        high = np.clip((old + 1) * self.old_block - self.start, low, self.new_len)
        first = low // self.new_block
        return first, np.where(high > low, -(-high // self.new_block) - first, 0)

    def old_range(self, new: np.ndarray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """First and last old block that each new block touches, and where in the first it starts."""
        low = self.start + new * self.new_block
        high = self.start + np.minimum((new + 1) * self.new_block, self.new_len) - 1
        first = low // self.old_block
        return first, high // self.old_block, low - first * self.old_block

    @property
    def span(self) -> int:
        """Old blocks that a new one can touch."""
        shared_alignment = self.start % self.old_block == 0 and (
            self.new_block % self.old_block == 0 or self.old_block % self.new_block == 0
        )
        return -(-self.new_block // self.old_block) + (not shared_alignment)


def _recut(lists: BlockLists, grid: Grid, start: int) -> BlockLists:
    old = lists.grid
    query = _Axis(old.block_q, grid.block_q, start, grid.seqlen_q)
    key = _Axis(old.block_k, grid.block_k, 0, grid.seqlen_k)
    old_entries = entries(lists)
    new_keys = _touched(old, grid, query, key, old_entries[0])
    ids = np.full(len(new_keys), FULL)
    bits = [np.empty((0, grid.block_q, bitops.words(grid.block_k)), np.uint32)]
    n_patterns = 0
    for part in bitops.chunks(len(new_keys), query.span * key.span):
        recipes = _recipes(old, grid, query, key, old_entries, new_keys[part])
        mixed = (recipes[:, :-2] != FULL).any(axis=1)
        # Blocks put together from the same patterns in the same way are the same: each is made once.
        distinct, which = np.unique(recipes[mixed], axis=0, return_inverse=True)
        ids[part][mixed] = which.ravel() + n_patterns
        bits.append(_paste(lists, grid, query, key, distinct))
        n_patterns += len(distinct)
    return assemble(grid, new_keys, ids, np.concatenate(bits))


def _touched(old: Grid, grid: Grid, query: _Axis, key: _Axis, keys: np.ndarray) -> npt.NDArray[np.int64]:
    """Keys of the new blocks that listed old blocks touch."""
    group, i, j = old.split(keys)
    first_i, count_i = query.new_range(i)
    first_j, count_j = key.new_range(j)
    count = count_i * count_j
    source = np.repeat(np.arange(len(keys)), count)
    step_i, step_j = np.divmod(ragged_arange(np.zeros_like(count), count), count_j[source])
    new_i, new_j = first_i[source] + step_i, first_j[source] + step_j
    return sorted_unique((group[source] * grid.nq + new_i) * grid.nk + new_j)


def _recipes(
    old: Grid,
    grid: Grid,
    query: _Axis,
    key: _Axis,
    old_entries: tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]],
    new_keys: np.ndarray,
) -> npt.NDArray[np.int64]:
    """Ids of the old blocks under each new one, row by row, and the offsets into the first: (n, span_q * span_k + 2).

    Old blocks past the end of a new one, which no element reads, count as FULL.
    """
    old_keys, old_ids = old_entries
    group, i, j = grid.split(new_keys)
    first_i, last_i, offset_i = query.old_range(i)
    first_j, last_j, offset_j = key.old_range(j)
    rows = first_i[:, None, None] + np.arange(query.span)[:, None]
    cols = first_j[:, None, None] + np.arange(key.span)
    wanted = (group[:, None, None] * old.nq + rows) * old.nk + cols
    at = np.minimum(np.searchsorted(old_keys, wanted), len(old_keys) - 1)
    found = np.where(old_keys[at] == wanted, old_ids[at], ABSENT)
    unread = (rows > last_i[:, None, None]) | (cols > last_j[:, None, None])
    table = np.where(unread, FULL, found).reshape(len(new_keys), -1)
    return np.column_stack([table, offset_i, offset_j])


def _paste(
    lists: BlockLists, grid: Grid, query: _Axis, key: _Axis, recipes: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint32]:
    bits = bitops.with_constants(lists.bits)
    table = recipes[:, :-2].reshape(len(recipes), query.span, key.span)

    def elements(part: slice) -> npt.NDArray[np.bool_]:
        row = recipes[part, -2, None] + np.arange(grid.block_q)
        col = recipes[part, -1, None] + np.arange(grid.block_k)
        block_i, row = np.divmod(row, query.old_block)
        block_j, col = np.divmod(col, key.old_block)
        ids = table[np.arange(part.start, part.stop)[:, None, None], block_i[:, :, None], block_j[:, None, :]]
        word, bit = np.divmod(col, bitops.WORD)
        words = bits[ids, row[:, :, None], word[:, None, :]]
        return (words >> bit[:, None, :].astype(np.uint32) & 1).astype(np.bool_)

    return bitops.build(len(recipes), grid.block_size, elements)
