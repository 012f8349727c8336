"""Block masks of the C interface: handles, which are numbers that are never used twice."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from flashcupy import arrays
from flashcupy.block_mask import BlockMask
from flashcupy.blocks import placing


class _Entry:
    """A mask, and how many calls are using it."""

    def __init__(self, mask: BlockMask) -> None:
        self.mask, self.users = mask, 0


class _Using:
    """A context manager that is quicker than one of `contextlib`'s."""

    __slots__ = ("_table",)

    def __init__(self, table: MaskTable) -> None:
        self._table = table

    def __enter__(self) -> None:
        self._table.begin()

    def __exit__(self, *_: object) -> None:
        self._table.end()


class MaskTable:
    """The masks that there are. Safe between threads; a destroyed one is recognised by its handle."""

    def __init__(self, ffi: Any) -> None:
        self._ffi = ffi
        self._entries: dict[int, _Entry] = {}
        self._handles = itertools.count(1)
        self._idle = threading.Condition()
        self._local = threading.local()

    def add(self, mask: BlockMask) -> Any:
        """Return a handle."""
        handle = next(self._handles)
        with self._idle:
            self._entries[handle] = _Entry(mask)
        return self._ffi.cast("flashcupy_block_mask *", handle)

    def using(self) -> _Using:
        """One call: the masks that it asks for are not freed before it has launched its work."""
        return _Using(self)

    def begin(self) -> None:
        self._local.used = None

    def end(self) -> None:
        used, self._local.used = self._local.used, None
        if used:
            self._release(used)

    def of_call(self, pointer: Any) -> BlockMask:
        """The mask of a handle, held until the call ends.

        Raises
        ------
        ValueError
            If there is no such mask, or none any more.
        """
        with self._idle:
            entry = self._entry(pointer)
            entry.users += 1
        self._local.used = [*(self._local.used or ()), entry]
        return entry.mask

    def destroy(self, pointer: Any) -> None:
        """Forget a mask, and free it when nothing uses it any more, for which a device is waited for."""
        with self._idle:
            entry = self._entry(pointer)
            del self._entries[self._number(pointer)]
        self._free(entry)

    def destroy_all(self) -> None:
        with self._idle:
            entries, self._entries = list(self._entries.values()), {}
        errors = [error for error in map(self._failure, entries) if error is not None]
        if errors:
            raise errors[0]

    def _failure(self, entry: _Entry) -> BaseException | None:
        """Free an entry; the others are freed whatever comes of it."""
        try:
            self._free(entry)
        except BaseException as error:
            return error
        return None

    def _free(self, entry: _Entry) -> None:
        with self._idle:
            self._idle.wait_for(lambda: entry.users == 0)
        if entry.mask.device == arrays.HOST:
            return
        device = placing.builder().device_named(entry.mask.device)
        try:
            with device.on_stream(0):
                device.synchronize()
        except BaseException:
            _still_in_flight.append(entry.mask)  # its memory may be: it is not given to anybody else
            raise

    def _release(self, used: list[_Entry]) -> None:
        with self._idle:
            for entry in used:
                entry.users -= 1
            self._idle.notify_all()

    def _entry(self, pointer: Any) -> _Entry:
        entry = self._entries.get(self._number(pointer))
        if entry is None:
            raise ValueError(f"block_mask {self._number(pointer):#x} is no mask, or one that was destroyed")
        return entry

    def _number(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))


_still_in_flight: list[BlockMask] = []
