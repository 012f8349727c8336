"""The lists of a block mask in device memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import numpy as np

from flashcupy.blocks import bits as bitops
from flashcupy.blocks import check
from flashcupy.blocks.build import full_blocks
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, Lists, assemble, entries, transpose
from flashcupy.blocks.order import longest_first
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.plan import LIST_ARRAYS

Array = Any


@dataclasses.dataclass(frozen=True, eq=False)
class DeviceLists(Lists):
    """As `BlockLists`, on a device. Values are out of reach, and what lies behind ``indptr[-1]`` is padding.

    Each PARTIAL block that was found on a device has a pattern of its own, at its place in the rows' lists. A total
    beyond the length of the index arrays says that there was no room for the blocks of the last rows.

    Attributes
    ----------
    grid : Grid
    device : Device
    full_indptr, full_indices, partial_indptr, partial_indices, bits, bits_id
        See `BlockLists`.
    order : int32 (B * H * nq,)
        Rows in the order in which they are computed.
    stream : hashable
        Where they were allocated: see `keep`.
    of_graph : bool
        Whether the memory belongs to the graph that was captured when it was allocated: see `keep_new_for_graph`.
    """

    grid: Grid
    device: Device
    full_indptr: Array
    full_indices: Array
    partial_indptr: Array
    partial_indices: Array
    bits: Array
    bits_id: Array
    order: Array
    stream: Hashable
    of_graph: bool = False

    @classmethod
    def empty(cls, device: Device, grid: Grid, capacity: int, partial_capacity: int) -> DeviceLists:
        """Memory for lists; its content is undefined."""

        def new(dtype: type, *shape: int) -> Array:
            return device.empty(shape, np.dtype(dtype))

        order = new(np.int32, grid.rows)
        return cls(
            grid,
            device,
            full_indptr=new(np.int64, grid.rows + 1),
            full_indices=new(np.int32, capacity),
            partial_indptr=new(np.int64, grid.rows + 1),
            partial_indices=new(np.int32, partial_capacity),
            bits=new(np.uint32, partial_capacity, grid.block_q, bitops.words(grid.block_k)),
            bits_id=new(np.int32, partial_capacity),
            order=order,
            stream=device.current_stream(),
            of_graph=device.is_stream_ordered(order) and device.is_capturing(),
        )

    @classmethod
    def from_host(cls, device: Device, lists: BlockLists, *, transposed: bool) -> DeviceLists:
        """Copy lists; not while a graph is captured."""
        arrays = {name: device.from_host(np.ascontiguousarray(x)) for name, x in lists.trimmed().arrays().items()}
        order = device.from_host(longest_first(lists, last_first=not transposed))
        return cls(lists.grid, device, **arrays, order=order, stream=device.current_stream())

    def overwrite(self, lists: BlockLists, *, last_first: bool) -> None:
        """Copy lists of the host, for which there is room, over these, in stream order; not while capturing."""
        for name, content in lists.trimmed().arrays().items():
            target = getattr(self, name)
            self.device.overwrite(target[: len(content)], np.ascontiguousarray(content))
        self.device.overwrite(self.order, longest_first(lists, last_first=last_first))

    def cleared(self, *, last_first: bool) -> DeviceLists:
        """Return them listing nothing; not while a graph is captured."""
        nothing = full_blocks(self.grid, np.empty(0, np.int64))
        return dataclasses.replace(
            self,
            full_indptr=self.device.from_host(nothing.full_indptr),
            partial_indptr=self.device.from_host(nothing.partial_indptr),
            order=self.device.from_host(longest_first(nothing, last_first=last_first)),
        )

    def slots(self, name: str) -> dict[str, int]:
        """What kernels get of the lists that they call `name`: addresses, and what lies there."""
        numbers = {slot: runtime().pointer(getattr(self, slot)) for slot in LIST_ARRAYS}
        numbers["capacity"] = self.full_indices.shape[0]
        numbers["partial_capacity"], numbers["patterns"] = self.partial_indices.shape[0], self.bits.shape[0]
        return {f"{name}.{slot}": number for slot, number in numbers.items()}

    def keep(self, owner: object = None) -> None:
        """Keep the memory, or what owns it and more, until the current stream has passed this point.

        A mask serves calls on any stream, and its user may let go of it when these have returned.
        """
        if not self.of_graph:  # whose memory nobody else gets
            self.device.keep_elsewhere(self if owner is None else owner, self.stream)

    def check(self, transposed: DeviceLists | None) -> None:
        """Raise ValueError for what is wrong with the lists, or their transposed ones; waits for the device."""
        lists = self.to_host()
        if transposed is not None and not check.equal(transposed.to_host(), transpose(lists)):
            raise ValueError("the transposed lists are not those of the transposed mask")
        for own in (self, *(() if transposed is None else (transposed,))):
            if not np.array_equal(np.sort(own.read_order()), np.arange(own.grid.rows)):
                raise ValueError("order must name each row once")

    def read_order(self) -> np.ndarray:
        """Copy the order of rows to the host."""
        return self.device.to_host(self.order)

    def read(self) -> BlockLists:
        """Copy the arrays to the host as they are, but for padding; waits for the device."""
        copy = self.device.to_host
        full_indptr, partial_indptr = copy(self.full_indptr), copy(self.partial_indptr)
        full, partial = (max(0, int(indptr[-1])) for indptr in (full_indptr, partial_indptr))
        # Each PARTIAL block has a pattern at its place, or, of lists that came from the host, one of those there are.
        return BlockLists(
            self.grid,
            full_indptr,
            copy(self.full_indices[:full]),
            partial_indptr,
            copy(self.partial_indices[:partial]),
            copy(self.bits[:partial]),
            copy(self.bits_id[:partial]),
        )

    def to_host(self) -> BlockLists:
        """Return the lists on the host, in normal form; waits for the device.

        Raises
        ------
        ValueError
            If there was no room for all blocks, or something else has written to the arrays.
        """
        lists = self.read()
        check.check_raw(lists)
        return assemble(self.grid, *entries(lists), lists.bits[: lists.n_patterns])
