"""The k best-scored blocks of each block row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks.bits import chunks
from flashcupy.blocks.build import full_blocks
from flashcupy.blocks.grid import Grid, batch_and_heads, check_count
from flashcupy.blocks.host import bool_array, check_shape, real_array
from flashcupy.blocks.lists import BlockLists


def from_topk(scores: Any, k: Any, shape: Any, *, block_size: Any, allowed: Any, include: Any) -> BlockLists:
    """Build lists of the k best of `scores` (..., nq, nk) in each row; see `BlockMask.from_topk`."""
    table = real_array("scores", scores)
    grid = Grid.make(shape, block_size, *batch_and_heads("scores", table.shape[:-2]))
    check_shape("scores", table, (*table.shape[:-2], grid.nq, grid.nk))
    k = check_count("k", k)
    may = np.broadcast_to(True, table.shape) if allowed is None else _like_scores("allowed", allowed, table)
    must = np.broadcast_to(False, table.shape) if include is None else _like_scores("include", include, table)
    if grid.cells == 0:
        return full_blocks(grid, np.empty(0, np.int64))
    rows = (grid.rows, grid.nk)
    table = table.reshape(rows)
    keys = [np.empty(0, np.int64)]
    for part in chunks(grid.rows, grid.nk):
        at = np.unravel_index(np.arange(part.start, part.stop), may.shape[:-1])
        chosen = _choose(table[part], may[at], must[at], k)
        keys.append(np.flatnonzero(chosen) + part.start * grid.nk)
    return full_blocks(grid, np.concatenate(keys))


def _like_scores(name: str, array: Any, scores: np.ndarray) -> npt.NDArray[np.bool_]:
    flags = bool_array(name, array)
    try:
        return np.broadcast_to(flags, scores.shape)
    except ValueError:
        raise ValueError(f"{name} must broadcast to the shape {scores.shape} of scores, got {flags.shape}") from None


def _choose(scores: np.ndarray, may: np.ndarray, must: np.ndarray, k: int) -> npt.NDArray[np.bool_]:
    cost = np.where(np.isnan(scores), np.inf, -scores)
    forced = _cheapest(np.where(may & must, cost, np.nan), np.full(len(cost), k))
    free = may & ~must & (cost < np.inf)
    return forced | _cheapest(np.where(free, cost, np.nan), k - forced.sum(axis=1))


def _cheapest(cost: np.ndarray, count: np.ndarray) -> npt.NDArray[np.bool_]:
    """Mark the `count` lowest of each row, ties by lower column; NaN is never marked."""
    ordered = np.sort(cost, axis=1)  # NaN last
    last = np.clip(count - 1, 0, cost.shape[1] - 1)
    threshold = np.take_along_axis(ordered, last[:, None], axis=1)
    threshold = np.where(np.isnan(threshold), np.inf, threshold)  # fewer candidates than asked for
    below = cost < threshold
    ties = cost == threshold
    room = count - below.sum(axis=1)
    return (below | (ties & (np.cumsum(ties, axis=1) <= room[:, None]))) & (count > 0)[:, None]
