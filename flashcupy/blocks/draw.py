"""Pictures of a mask at the resolution of its blocks, or a lower one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks.check import density
from flashcupy.blocks.lists import FULL, BlockLists, entries

_TEXT_CELLS = (32, 64)
_PLOT_CELLS = (1024, 1024)
_GLYPHS = np.array(["·", "░", "▒", "█"])


def _cells(lists: BlockLists, most: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, npt.NDArray[np.int64]]:
    """Count FULL and PARTIAL blocks of the first head in at most that many cells, and blocks in each cell."""
    nq, nk = lists.grid.nq, lists.grid.nk
    n_rows, n_cols = min(nq, most[0]), min(nk, most[1])
    keys, ids = entries(lists)
    first_head = keys < nq * nk
    _, i, j = lists.grid.split(keys[first_head])
    cell = i * n_rows // max(nq, 1) * n_cols + j * n_cols // max(nk, 1)
    is_full = ids[first_head] == FULL
    full, partial = (np.bincount(cell[kind], minlength=n_rows * n_cols) for kind in (is_full, ~is_full))
    height = np.bincount(np.arange(nq) * n_rows // max(nq, 1), minlength=n_rows)
    width = np.bincount(np.arange(nk) * n_cols // max(nk, 1), minlength=n_cols)
    return full.reshape(n_rows, n_cols), partial.reshape(n_rows, n_cols), np.outer(height, width)


def text(lists: BlockLists) -> str:
    """Draw the first head in characters: ``█`` FULL, ``▒`` PARTIAL, ``·`` empty.

    In a mask drawn at lower resolution ``▒`` means that half of the blocks or more are visited, ``░`` that fewer are.
    """
    batch, heads, seqlen_q, seqlen_k = lists.shape
    bq, bk = lists.block_size
    header = f"BlockMask {batch} x {heads} x {seqlen_q} x {seqlen_k}, blocks {bq} x {bk}, density {density(lists):.3f}"
    if lists.grid.groups > 1:
        header += " (drawn: batch 0, head 0)"
    full, partial, size = _cells(lists, _TEXT_CELLS)
    listed = full + partial
    level = np.where(full == size, 3, (listed > 0).astype(int) + (2 * listed >= size))
    return "\n".join([header, *map("".join, _GLYPHS[level])])


def plot(lists: BlockLists, ax: Any) -> Any:
    """Draw the first head as a picture in element coordinates; see `BlockMask.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install 'flashcupy[plot]'") from error
    if ax is None:
        _, ax = pyplot.subplots()
    grid = lists.grid
    full, partial, size = _cells(lists, _PLOT_CELLS)
    if size.size:
        shade = (full + 0.5 * partial) / size
        edges = (0, grid.nk * grid.block_k, grid.nq * grid.block_q, 0)
        ax.imshow(shade, cmap="Blues", vmin=0.0, vmax=1.0, extent=edges, interpolation="nearest")
        ax.set(xlim=(0, grid.seqlen_k), ylim=(grid.seqlen_q, 0))
    ax.set(xlabel="key", ylabel="query")
    return ax
