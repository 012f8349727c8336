"""Memory of a block mask on a device, and what fills it, in stream order."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, transpose
from flashcupy.cuda.device import Device, runtime
from flashcupy.cuda.device_lists import DeviceLists
from flashcupy.cuda.first_use_lists import ListCase
from flashcupy.cuda.launch import PlanCache, ReadyPlan, keep_for_graph, prepare
from flashcupy.cuda.mask_plan import MaskPlan, Source, scratch_bytes
from flashcupy.errors import NotWarmedUpError

Array = Any

_plans = PlanCache()
_BYTE, _INT32 = np.dtype(np.uint8), np.dtype(np.int32)


class DeviceBuffers:
    """Lists of rows and, if asked for or once needed, of columns; `fixed` ones keep their addresses for good.

    Masks that are not fixed have room for all blocks that there can be, and are written once.
    """

    def __init__(
        self, device: Device, grid: Grid, capacity: int, partial_capacity: int, *, transposed: bool, fixed: bool
    ) -> None:
        self.capacity, self.partial_capacity = capacity, partial_capacity
        self.fixed, self.device, self.grid = fixed, device, grid
        self.keeps_columns = transposed
        self.lists = self._new_lists(grid, last_first=True)
        self._columns = self._new_lists(grid.mT, last_first=False) if transposed else None
        # Of columns that are not kept: those that are there are of the rows, and no graph rewrites the rows unseen.
        self._columns_written = self._captured = False
        self._source: Source | None = None  # of what is in the lists
        self._bad_ids: Array | None = device.from_host(np.zeros(grid.rows, np.int32)) if fixed else None
        self._scratch = self._new_scratch() if fixed else {}
        self._lock = threading.Lock()

    def _new_lists(self, grid: Grid, *, last_first: bool) -> DeviceLists:
        """Lists to write; those that are fixed list nothing yet."""
        new = DeviceLists.empty(self.device, grid, self.capacity, self.partial_capacity)
        return new.cleared(last_first=last_first) if self.fixed else new

    def write(self, source: Source, arrays: Mapping[str, Array]) -> None:
        """Fill the lists from a source, asynchronously."""
        if self._bad_ids is None:
            self._bad_ids = self.device.empty((self.grid.rows,), _INT32)
        with self._lock:
            self._run(source, arrays, rows=True, columns=self.keeps_columns)
            self._source, self._columns_written = source, False
            self._captured |= self.device.is_capturing()

    def rewrite(self, lists: BlockLists) -> None:
        """Copy lists of the host, for which there is room, in stream order; the device is waited for.

        Raises
        ------
        NotWarmedUpError
            While a graph is captured: its replays could not copy them again.
        ValueError
            If a graph rewrites the lists, and no transposed ones are kept: nobody could tell whose those must be.
        """
        if self._captured and not self.keeps_columns:
            raise ValueError("out is rewritten by a graph and keeps no transposed lists, expected arrays on the device")
        with self.device.scope(), self._lock:
            if self.device.is_capturing():
                raise NotWarmedUpError(
                    "lists of a block_mask in host memory cannot be copied to the device while a graph is captured: "
                    "build it from arrays on the device"
                )
            self.lists.overwrite(lists, last_first=True)
            columns = transpose(lists)
            if self.keeps_columns:
                assert self._columns is not None
                self._columns.overwrite(columns, last_first=False)
            else:
                self._columns = DeviceLists.from_host(self.device, columns, transposed=True)
            # Calls on other streams may use what is new, and where a GPU reads the host's memory by itself, copies have
            # not left it before.
            self.device.synchronize()
            self._source, self._columns_written = None, not self.keeps_columns

    @property
    def transposed(self) -> DeviceLists | None:
        """The lists of columns, where they are written with those of rows."""
        return self._columns if self.keeps_columns else None

    def columns(self) -> DeviceLists:
        """Return the lists of columns; those that are not kept are made now, once for each rewrite.

        Raises
        ------
        NotWarmedUpError
            While a graph is captured, for lists that are not kept: its replays would not renew them.
        """
        if self.keeps_columns:
            assert self._columns is not None
            return self._columns
        with self.device.scope(), self._lock:
            if self.device.is_capturing():
                raise NotWarmedUpError(
                    "the block_mask keeps no transposed lists, and none can be made while a graph is captured: make it "
                    "by BlockMask.empty(..., transposed=True)"
                )
            if not self._columns_written or self._captured:
                self._columns = self._new_lists(self.grid.mT, last_first=False)
                if self._source is not None:
                    self._run(self._source, {}, rows=False, columns=True)
                self.device.synchronize()  # once: calls on other streams use them too
                self._columns_written = True
            assert self._columns is not None
            return self._columns

    def check(self) -> None:
        """Raise ValueError for what is wrong with the mask; waits for the device."""
        bad = 0 if self._source is None else int(self.device.to_host(self._bad_ids).sum())
        if bad:
            raise ValueError(
                f"{bad} ids or counts of the mask were out of range or repeated in their row, and left out"
            )
        self.lists.check(self.columns() if self.keeps_columns or self._columns_written else None)

    def _run(self, source: Source, arrays: Mapping[str, Array], *, rows: bool, columns: bool) -> None:
        with self.device.scope():
            ready = self._ready(source, rows=rows, columns=columns)
            addresses = {name: runtime().pointer(array) for name, array in arrays.items()}
            addresses |= self.lists.slots("rows")
            if self._columns is not None:
                addresses |= self._columns.slots("columns")
            addresses["bad_ids"] = runtime().pointer(self._bad_ids)
            addresses |= {slot: runtime().pointer(array) for slot, array in self._scratch.items()}
            if not self.lists.of_graph:
                keep_for_graph(self.device, self)
            ready.run(self.device, addresses, [])
            self.device.keep_until_done(arrays.values())
            self.lists.keep(self)

    def _ready(self, source: Source, *, rows: bool, columns: bool) -> ReadyPlan:
        key = (self.device, self.grid, self.capacity, self.partial_capacity, tuple(self._scratch), rows, columns)

        def make() -> ReadyPlan:
            plan = MaskPlan(self.grid, self.capacity, self.partial_capacity, partial=source.partial)
            if rows:
                plan.from_source(source)
            if columns:
                plan.transpose()
            needed = scratch_bytes(self.grid, partial=source.partial)
            own = {slot: nbytes for slot, nbytes in needed.items() if slot not in self._scratch}
            check = functools.partial(ListCase.of(source).begin, self.device)
            return prepare(self.device, plan.finish(own), [], "float", check)

        return _plans.get((*key, source.key), make)

    def _new_scratch(self) -> dict[str, Array]:
        """Words and counts, which later columns are made from too; those of PARTIAL blocks where there may be some."""
        sizes = scratch_bytes(self.grid, partial=self.partial_capacity > 0 or not self.keeps_columns)
        return {slot: self.device.empty((nbytes,), _BYTE) for slot, nbytes in sizes.items()}
