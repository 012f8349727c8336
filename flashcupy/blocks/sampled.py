"""Patterns with random blocks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashcupy.blocks.build import full_blocks
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, ragged_arange

UNUSED = -1


def draw_distinct(rng: np.random.Generator, sizes: npt.NDArray[np.int64], n: int) -> npt.NDArray[np.int64]:
    """Draw n distinct numbers below each size, all of them where there are fewer, as (rows, n) padded with UNUSED.

    Floyd's sampling (Bentley and Floyd, 1987), all rows at once: it needs no permutation of what it draws from.
    """
    drawn = np.full((len(sizes), n), UNUSED)
    for step in range(n):
        last = sizes - n + step
        number = rng.integers(0, np.maximum(last, 0) + 1)
        taken = (drawn[:, :step] == number[:, None]).any(axis=1)
        drawn[:, step] = np.where(last < 0, UNUSED, np.where(taken, last, number))
    return drawn


def random_blocks(grid: Grid, per_row: int, rng: np.random.Generator) -> BlockLists:
    """Draw `per_row` FULL blocks in each block row of each head."""
    cols = draw_distinct(rng, np.full(grid.rows, grid.nk), per_row)
    return full_blocks(grid, np.sort((np.arange(grid.rows)[:, None] * grid.nk + cols).ravel()))


def bigbird(grid: Grid, window: int, n_global: int, n_random: int, rng: np.random.Generator) -> BlockLists:
    """Join global, window and random FULL blocks; see `BlockMask.bigbird`."""
    n_global_rows, n_global_cols = min(n_global, grid.nq), min(n_global, grid.nk)
    i = np.arange(n_global_rows, grid.nq)
    centre = (i * grid.block_q + grid.seqlen_k - grid.seqlen_q) // grid.block_k
    # Global columns are taken out of the window, and the window's from what is drawn: no block comes twice.
    start = np.clip(centre - window // 2, n_global_cols, grid.nk)
    stop = np.clip(centre + window // 2 + 1, start, grid.nk)
    free = grid.nk - n_global_cols - (stop - start)
    group = np.arange(grid.groups)[:, None]
    rank = draw_distinct(rng, np.tile(free, grid.groups), n_random).reshape(grid.groups, len(i), n_random)
    col = rank + n_global_cols
    col = np.where(col >= start[:, None], col + (stop - start)[:, None], col)
    random = ((group * grid.nq + i)[..., None] * grid.nk + col)[rank != UNUSED]
    shared = np.concatenate(
        [
            np.arange(n_global_rows * grid.nk),
            (i[:, None] * grid.nk + np.arange(n_global_cols)).ravel(),
            np.repeat(i * grid.nk, stop - start) + ragged_arange(start, stop - start),
        ]
    )
    everywhere = (group * (grid.nq * grid.nk) + shared).ravel()
    return full_blocks(grid, np.sort(np.concatenate([everywhere, random])))
