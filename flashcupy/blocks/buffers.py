"""Lists of fixed capacity and address, for masks that are rewritten in place."""

from __future__ import annotations

import numpy as np

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, transpose


def require_room(lists: BlockLists, grid: Grid, capacity: int, partial_capacity: int) -> None:
    """Raise ValueError for lists that do not fit into those of a mask made by `empty`."""
    if lists.grid != grid:
        raise ValueError(
            f"out must be a mask of shape {lists.shape} and block_size {lists.block_size}, "
            f"got {grid.shape} and {grid.block_size}"
        )
    if lists.n_full > capacity:
        raise ValueError(f"out holds {capacity} FULL blocks (capacity), got {lists.n_full}")
    if lists.n_partial > partial_capacity:
        raise ValueError(f"out holds {partial_capacity} PARTIAL blocks (partial_capacity), got {lists.n_partial}")


class _Storage:
    """Writable arrays, and `lists`, the read-only views of them that are handed out."""

    def __init__(self, grid: Grid, capacity: int, partial_capacity: int) -> None:
        self._arrays: dict[str, np.ndarray] = {
            "full_indptr": np.zeros(grid.rows + 1, np.int64),
            "full_indices": np.zeros(capacity, np.int32),
            "partial_indptr": np.zeros(grid.rows + 1, np.int64),
            "partial_indices": np.zeros(partial_capacity, np.int32),
            "bits": np.zeros((partial_capacity, grid.block_q, bitops.words(grid.block_k)), np.uint32),
            "bits_id": np.zeros(partial_capacity, np.int32),
        }
        self.lists = BlockLists(grid, **{name: array.view() for name, array in self._arrays.items()})

    def write(self, lists: BlockLists) -> None:
        for name, array in lists.arrays().items():
            self._arrays[name][: len(array)] = array


class Buffers:
    """The lists of a mask made by `BlockMask.empty` and, if asked for, those of its transpose."""

    fixed = True

    def __init__(self, grid: Grid, capacity: int, partial_capacity: int, transposed: bool) -> None:
        self.capacity = capacity
        self.partial_capacity = partial_capacity
        self._storage = _Storage(grid, capacity, partial_capacity)
        self._transposed = _Storage(grid.mT, capacity, partial_capacity) if transposed else None

    @property
    def lists(self) -> BlockLists:
        """Fixed views."""
        return self._storage.lists

    @property
    def transposed(self) -> BlockLists | None:
        """Fixed views, or None if the transposed lists have no buffers of their own."""
        return None if self._transposed is None else self._transposed.lists

    def rewrite(self, lists: BlockLists) -> None:
        """Replace the contents by lists for which there is room."""
        transposed = None if self._transposed is None else transpose(lists)
        self._storage.write(lists)
        if self._transposed is not None and transposed is not None:
            self._transposed.write(transposed)
