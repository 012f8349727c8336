"""Pictures of a mask at the resolution of its blocks, or a lower one."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from flashcupy.blocks.check import density
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import FULL, BlockLists, entries

_TEXT_CELLS = (32, 64)
_PLOT_CELLS = (1024, 1024)
_GLYPHS = np.array(["·", "░", "▒", "█"])
_MOST_GRID_LINES = 64  # more would hide the blocks between them
_LONGEST_SIDE = 8  # times the other: a picture drawn to scale would be a line


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Blocks of the first head counted in cells of ``step`` blocks (rows, columns), the last ones cut by the mask."""

    full: np.ndarray
    partial: np.ndarray
    size: np.ndarray
    step: tuple[int, int]

    @classmethod
    def count(cls, lists: BlockLists, most: tuple[int, int]) -> _Cells:
        """Count FULL and PARTIAL blocks in at most that many cells."""
        blocks = lists.grid.nq, lists.grid.nk
        # Cells of one size: with every so many larger by a block, an even pattern would show stripes.
        step_q, step_k = (max(1, -(-n // limit)) for n, limit in zip(blocks, most, strict=True))
        n_rows, n_cols = -(-blocks[0] // step_q), -(-blocks[1] // step_k)
        keys, ids = entries(lists)
        first_head = keys < blocks[0] * blocks[1]
        _, i, j = lists.grid.split(keys[first_head])
        cell = i // step_q * n_cols + j // step_k
        is_full = ids[first_head] == FULL
        full, partial = (np.bincount(cell[kind], minlength=n_rows * n_cols) for kind in (is_full, ~is_full))
        height = np.bincount(np.arange(blocks[0]) // step_q, minlength=n_rows)
        width = np.bincount(np.arange(blocks[1]) // step_k, minlength=n_cols)
        shape = n_rows, n_cols
        return cls(full.reshape(shape), partial.reshape(shape), np.outer(height, width), (step_q, step_k))


def text(lists: BlockLists) -> str:
    """Draw the first head in characters: ``█`` FULL, ``▒`` PARTIAL, ``·`` empty.

    In a mask drawn at lower resolution ``▒`` means that half of the blocks or more are visited, ``░`` that fewer are.
    """
    batch, heads, seqlen_q, seqlen_k = lists.shape
    bq, bk = lists.block_size
    header = f"BlockMask {batch} x {heads} x {seqlen_q} x {seqlen_k}, blocks {bq} x {bk}, density {density(lists):.3f}"
    if lists.grid.groups > 1:
        header += " (drawn: batch 0, head 0)"
    cells = _Cells.count(lists, _TEXT_CELLS)
    listed = cells.full + cells.partial
    level = np.where(cells.full == cells.size, 3, (listed > 0).astype(int) + (2 * listed >= cells.size))
    return "\n".join([header, *map("".join, _GLYPHS[level])])


def plot(lists: BlockLists, ax: Any) -> Any:
    """Draw the first head as a picture in element coordinates; see `BlockMask.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'flashcupy[plot]'") from error
    if ax is None:
        _, ax = pyplot.subplots()
    grid, cells = lists.grid, _Cells.count(lists, _PLOT_CELLS)
    if cells.size.size:
        rows, columns = cells.size.shape
        cell_height, cell_width = (n * block for n, block in zip(cells.step, grid.block_size, strict=True))
        ax.imshow(
            (cells.full + 0.5 * cells.partial) / cells.size,
            cmap="Blues",
            vmin=0.0,
            vmax=1.0,
            extent=(0, columns * cell_width, rows * cell_height, 0),
            interpolation="nearest",
            aspect="equal" if _is_drawn_to_scale(grid) else "auto",
        )
        ax.set(xlim=(0, grid.seqlen_k), ylim=(grid.seqlen_q, 0))
        if max(grid.nq, grid.nk) <= _MOST_GRID_LINES:
            ax.hlines(np.arange(grid.nq) * grid.block_q, 0, grid.seqlen_k, colors="0.85", linewidths=0.3)
            ax.vlines(np.arange(grid.nk) * grid.block_k, 0, grid.seqlen_q, colors="0.85", linewidths=0.3)
    bq, bk = grid.block_size
    ax.set(xlabel="key", ylabel="query", title=f"blocks {bq} x {bk}, density {density(lists):.3g}")
    return ax


def _is_drawn_to_scale(grid: Grid) -> bool:
    return max(grid.seqlen_q, grid.seqlen_k) <= _LONGEST_SIDE * min(grid.seqlen_q, grid.seqlen_k)
