"""Block-sparse patterns: the same blocks as flashcupy's BlockMask, as bool grids for the peers, and as a predicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from flashcupy import BlockMask

Grid = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Pattern:
    """Which blocks are visited.

    Attributes
    ----------
    kind
        "random": FULL blocks at random, equally many in each block row. "window": a causal sliding window, whose edges
        are PARTIAL blocks. "skewed": FULL blocks on the diagonal, and leading block rows and columns that are whole.
    size
        Share of the blocks of "random"; keys to the left of "window" as a share of the length; whole block rows of
        "skewed" as a share of all.
    """

    kind: Literal["random", "window", "skewed"]
    size: float
    block: int

    @property
    def label(self) -> str:
        """Return kind and size."""
        return f"{self.kind} {self.size:.3g}"

    @property
    def name(self) -> str:
        """Return kind, size and block for a row's name."""
        return f"{self.label} block {self.block}"

    def left(self, kv_length: int) -> int:
        """Return how many keys before its own a query of "window" sees."""
        return max(1, round(self.size * kv_length))

    def block_mask(self, q_length: int, kv_length: int) -> BlockMask:
        """Return the mask in host memory."""
        shape = (q_length, kv_length)
        if self.kind == "window":
            return BlockMask.sliding_window(shape, self.left(kv_length), 0, block_size=self.block)
        return BlockMask.from_blocks(self._blocks(*shape), shape, block_size=self.block)

    def grids(self, q_length: int, kv_length: int) -> tuple[Grid, Grid]:
        """Return which blocks are FULL and which are PARTIAL."""
        mask = self.block_mask(q_length, kv_length)
        full = _grid(mask, mask.full_indptr, mask.full_indices)
        return full, _grid(mask, mask.partial_indptr, mask.partial_indices)

    def visited_share(self, q_length: int, kv_length: int) -> float:
        """Return the area of the visited blocks over that of all blocks."""
        full, partial = self.grids(q_length, kv_length)
        return float((full | partial).mean())

    def visible(self, rows: Any, columns: Any, kv_length: int, xp: Any) -> Any:
        """Return the bool matrix of `rows` and `columns`, index vectors of the array module `xp`."""
        if self.kind == "window":
            distance = rows[:, None] - columns[None, :]
            return (distance >= 0) & (distance <= self.left(kv_length))
        grid = xp.asarray(self._blocks(kv_length, kv_length))
        return grid[rows[:, None] // self.block, columns[None, :] // self.block]

    def _blocks(self, q_length: int, kv_length: int) -> Grid:
        nq, nk = -(-q_length // self.block), -(-kv_length // self.block)
        if self.kind == "skewed":
            whole, i, j = max(1, round(self.size * nq)), np.arange(nq)[:, None], np.arange(nk)
            return (i == j) | (i < whole) | (j < whole)
        order = np.random.default_rng(0).permuted(np.broadcast_to(np.arange(nk), (nq, nk)), axis=1)
        return order < max(1, round(self.size * nk))


def _grid(mask: BlockMask, indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32]) -> Grid:
    grid = np.zeros((mask.num_block_rows, mask.num_block_cols), np.bool_)
    grid[np.repeat(np.arange(mask.num_block_rows), np.diff(indptr)), indices] = True
    return grid
