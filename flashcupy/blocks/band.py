"""Analytic patterns: bands around the diagonal and leading rectangles, in O(blocks) and without an element mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid, check_count
from flashcupy.blocks.lists import FULL, BlockLists, assemble, ragged_arange


def offset(grid: Grid, align: Any) -> int:
    """Return the key column that query row 0 is aligned with."""
    if align == "bottom-right":
        return grid.seqlen_k - grid.seqlen_q
    if align == "top-left":
        return 0
    raise ValueError(f"align must be 'bottom-right' or 'top-left', got {align!r}")


def side(name: str, value: Any, seqlen: int) -> int:
    """Return how far a window reaches; None reaches everywhere."""
    if value is None:
        return seqlen
    try:
        return min(check_count(name, value), seqlen)
    except ValueError:
        raise ValueError(f"{name} must be an int >= 0, or None for no limit, got {value}") from None


def band(grid: Grid, left: Any, right: Any, align: Any) -> BlockLists:
    """Build ``i + off - left <= j <= i + off + right`` on a grid of one head."""
    off = offset(grid, align)
    reach = grid.seqlen_q + grid.seqlen_k  # farther than any two elements are apart
    low, high = off - side("left", left, reach), off + side("right", right, reach)
    bq, bk = grid.block_size
    first_row = np.arange(grid.nq) * bq
    last_row = first_row + grid.heights() - 1
    # A row's window is never empty (it may lie outside) and the next row's is one further: their union has no gap.
    start = np.clip((first_row + low) // bk, 0, grid.nk)
    stop = np.clip((last_row + high) // bk + 1, start, grid.nk)
    full_start = np.clip(-(-(last_row + low) // bk), start, stop)
    full_stop = np.where(first_row + high >= grid.seqlen_k - 1, grid.nk, (first_row + high + 1) // bk)
    full_stop = np.clip(full_stop, full_start, stop)
    keys = ragged_arange(np.arange(grid.nq) * grid.nk + start, stop - start)
    row_ends = np.cumsum(stop - start)
    before = ragged_arange(row_ends - (stop - start), full_start - start)
    partial = np.concatenate([before, ragged_arange(row_ends - (stop - full_stop), stop - full_stop)])
    _, i, j = grid.split(keys[partial])
    # Whether an element is visible depends on j - i alone, so a block's pattern is known from its corner's.
    corners, pattern = np.unique(j * bk - i * bq, return_inverse=True)
    inner = np.arange(bk) - np.arange(bq)[:, None]

    def visible(part: slice) -> npt.NDArray[np.bool_]:
        diagonal = corners[part, None, None] + inner
        return (diagonal >= low) & (diagonal <= high)

    ids = np.full(len(keys), FULL, np.int32)
    ids[partial] = pattern
    return assemble(grid, keys, ids, bitops.build(len(corners), grid.block_size, visible))


def leading(grid: Grid, n_rows: int, n_cols: int) -> BlockLists:
    """Build ``i < n_rows and j < n_cols`` on a grid of one head."""
    n_rows, n_cols = min(n_rows, grid.seqlen_q), min(n_cols, grid.seqlen_k)
    bq, bk = grid.block_size
    i, j = (n.ravel() for n in np.indices((-(-n_rows // bq), -(-n_cols // bk))))
    seen_rows, seen_cols = np.minimum(n_rows - i * bq, bq), np.minimum(n_cols - j * bk, bk)
    corners, ids = np.unique(seen_rows * (bk + 1) + seen_cols, return_inverse=True)
    corner_rows, corner_cols = np.divmod(corners, bk + 1)
    row, col = np.arange(bq)[:, None], np.arange(bk)
    bits = bitops.build(
        len(corners),
        grid.block_size,
        lambda part: (row < corner_rows[part, None, None]) & (col < corner_cols[part, None, None]),
    )
    return assemble(grid, i * grid.nk + j, ids, bits)
