"""``cp.async``: copies under way. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy"."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ptx.memory import AccessError, Spaces, require_aligned
from ptx.values import Array


class _Copy(NamedTuple):
    """One instruction's copies, by lane: both ends, how many of the bytes are read, the group they are of."""

    lanes: Array
    to: Array
    source: Array
    size: int
    read_bytes: Array
    group: Array

    def of(self, some: Array) -> _Copy:
        return _Copy(
            self.lanes[some], self.to[some], self.source[some], self.size, self.read_bytes[some], self.group[some]
        )


class Copies:
    def __init__(self, lanes: int, lazy: bool) -> None:
        self._committed = np.zeros(lanes, np.int64)
        self._under_way: list[_Copy] = []
        self._lazy = lazy

    def issue(self, spaces: Spaces, lanes: Array, to: Array, source: Array, size: int, read_bytes: Array) -> None:
        if (read_bytes > size).any():
            raise AccessError("undefined: a copy that reads more than it writes")
        require_aligned(to, size)
        require_aligned(source, size)
        spaces.check_copies(to, source, size, read_bytes)
        copy = _Copy(lanes, to, source, size, read_bytes, self._committed[lanes])
        if self._lazy:
            self._under_way.append(copy)
        else:
            _arrive(spaces, copy)

    def finish(self, spaces: Spaces) -> None:
        """Let arrive what nobody has waited for: a block does not end before."""
        for copy in self._under_way:
            _arrive(spaces, copy)

    def commit(self, mask: Array | None) -> None:
        self._committed[slice(None) if mask is None else mask] += 1

    def wait(self, spaces: Spaces, mask: Array | None, pending: int) -> None:
        """Let arrive what is in all groups of these lanes but the youngest `pending`."""
        left = []
        for copy in self._under_way:
            due = copy.group < self._committed[copy.lanes] - pending
            if mask is not None:
                due &= mask[copy.lanes]
            if due.any():
                _arrive(spaces, copy.of(due))
            if not due.all():
                left.append(copy.of(~due))
        self._under_way = left


def _arrive(spaces: Spaces, copy: _Copy) -> None:
    count = copy.size
    content = np.zeros((len(copy.lanes), count), np.uint8)
    for n in range(count):
        there = np.flatnonzero(copy.read_bytes > n)
        content[there, n] = spaces.known.words(1)[spaces.known.place(copy.source[there] + np.uint64(n), 1)]
    words = content.view(np.uint32)
    spaces.store("shared", copy.to, copy.lanes, [words[:, n] for n in range(count // 4)])
