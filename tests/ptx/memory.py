"""State spaces and generic addresses: PTX ISA, "State Spaces". Bytes are where they are in this process."""

from __future__ import annotations

import bisect
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np

from ptx.values import flush

Array = Any

# Where the windows of state spaces begin among generic addresses: beyond all that a process has, and not at multiples
# of 2^32, so that the lower half of a generic address is no address in its space.
_WINDOW = 60
WINDOWS = {space: (n << _WINDOW) + (1 << 24) for n, space in enumerate(("shared", "param", "local"), 1)}
_ORIGIN = 64  # of the array below: no view may begin at 0


class AccessError(Exception):
    """An access that a GPU would refuse, or must not be made; the message says which."""


class GlobalMemory:
    """What kernels may touch: host memory that was made known, each region by begin and end."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._regions: list[tuple[int, int, bool]] = []  # begin, end, writable
        self._whole: dict[int, np.ndarray] = {}

    def know(self, owner: Any, begin: int, nbytes: int, writable: bool) -> weakref.finalize:
        """Let kernels touch memory for as long as `owner` lives."""
        region = (begin, begin + nbytes, writable)
        at = bisect.bisect(self._begins, begin)
        self._begins.insert(at, begin)
        self._regions.insert(at, region)
        forget = weakref.finalize(owner, self._forget, region)
        forget.atexit = False
        return forget

    def _forget(self, region: tuple[int, int, bool]) -> None:
        at = self._regions.index(region)
        del self._begins[at], self._regions[at]

    def check(self, addresses: Array, nbytes: Array, *, writes: bool) -> None:
        """Raise unless each address and as many bytes behind it are in one region."""
        regions = np.array(
            [(0, 0), *((begin, end) for begin, end, can in self._regions if can or not writes)], np.uint64
        )
        ends = regions[np.searchsorted(regions[:, 0], addresses, side="right") - 1, 1]
        outside = addresses + np.uint64(1) * nbytes > ends
        if outside.any():
            first = int(np.asarray(addresses)[np.argmax(outside)])
            begin, end, _ = self._regions[bisect.bisect(self._begins, first) - 1] if self._regions else (0, 0, False)
            raise AccessError(
                f"bounds: {'write to' if writes else 'read of'} {first:#x}, byte {first - begin} of {end - begin} there"
            )

    def words(self, size: int) -> np.ndarray:
        """All memory as unsigned integers of `size` bytes: element n is at `place(address, size)`."""
        if size not in self._whole:
            interface = {"data": (_ORIGIN, False), "shape": ((1 << 47) // size - _ORIGIN,), "typestr": f"<u{size}"}
            self._whole[size] = np.asarray(SimpleNamespace(__array_interface__=interface | {"version": 3}))
        return self._whole[size]

    @staticmethod
    def place(addresses: Array, size: int) -> Array:
        return ((addresses - np.uint64(_ORIGIN)) >> np.uint64(size.bit_length() - 1)).astype(np.int64)


class OwnMemory:
    """Memory that lanes have in groups, each of `nbytes` from address 0 on: shared, local, and the parameters."""

    def __init__(self, space: str, nbytes: int, group_of_lane: Array, fill: bytes = b"\xff") -> None:
        self.space, self.nbytes = space, nbytes
        self._stride = -(-nbytes // 128) * 128
        groups = int(group_of_lane.max()) + 1
        self.bytes = np.frombuffer(bytearray((fill * nbytes)[:nbytes].ljust(self._stride, b"\xff") * groups), np.uint8)
        self._start = group_of_lane.astype(np.int64) * self._stride

    def check(self, addresses: Array, nbytes: int) -> None:
        if addresses.size and int(addresses.max()) + nbytes > self.nbytes:
            raise AccessError(
                f"bounds: {nbytes} bytes at {int(addresses.max())} of {self.nbytes} of {self.space} memory"
            )

    def words(self, size: int) -> np.ndarray:
        return self.bytes.view(f"<u{size}")

    def place(self, addresses: Array, lanes: Array, size: int) -> Array:
        return (self._start[lanes] + addresses.astype(np.int64)) >> (size.bit_length() - 1)


def require_aligned(addresses: Array, nbytes: int) -> None:
    if nbytes > 1 and bool((addresses & np.uint64(nbytes - 1)).any()):
        raise AccessError(f"misaligned: an access to {nbytes} bytes")


def _add_one_by_one(sums: Array, which: Array, own: Array) -> None:
    """Of float32 in global memory operands and results are flushed: PTX ISA, "red"."""
    sums[...] = flush(sums)
    own, left = flush(own), np.arange(len(own))
    while len(left):
        now = left[np.unique(which[left], return_index=True)[1]]
        sums[which[now]] = flush(sums[which[now]] + own[now])
        left = np.setdiff1d(left, now, assume_unique=True)


class Spaces:
    """All memory of the blocks that run together."""

    def __init__(self, known: GlobalMemory, params: bytes, shared_bytes: int, local_bytes: int, block_of_lane: Array):
        lanes = len(block_of_lane)
        self.known = known
        self.own = {
            "param": OwnMemory("param", len(params), np.zeros(lanes, np.int64), params),
            "shared": OwnMemory("shared", shared_bytes, block_of_lane),
            "local": OwnMemory("local", local_bytes, np.arange(lanes)),
        }

    def load(self, space: str, addresses: Array, lanes: Array, size: int, count: int) -> list[Array]:
        """`count` neighbouring words of `size` bytes for each of the lanes; `space` is "" for generic addresses."""
        result = [np.empty(len(lanes), f"u{size}") for _ in range(count)]
        for _, some, words, places in self._parts(space, addresses, lanes, size, count, writes=False):
            for n in range(count):
                result[n][some] = words[places + n]
        return result

    def store(self, space: str, addresses: Array, lanes: Array, values: list[Array]) -> None:
        size = values[0].dtype.itemsize
        for _, some, words, places in self._parts(space, addresses, lanes, size, len(values), writes=True):
            for n, value in enumerate(values):
                words[places + n] = value[some]

    def add(self, space: str, addresses: Array, lanes: Array, values: list[Array]) -> None:
        """Atomic additions; the type is that of the values."""
        size = values[0].dtype.itemsize
        for one, some, words, places in self._parts(space, addresses, lanes, size, len(values), writes=True):
            for n, value in enumerate(values):
                once, which = np.unique(places + n, return_inverse=True)
                sums, own = words[once].view(value.dtype), value[some]
                if value.dtype == np.float32 and one == "global":
                    _add_one_by_one(sums, which, own)
                else:
                    np.add.at(sums, which, own)
                words[once] = sums.view(words.dtype)

    def _parts(self, space: str, addresses: Array, lanes: Array, size: int, count: int, *, writes: bool) -> Any:
        """The memories that the addresses are of: which lanes, its words, and their places in them."""
        require_aligned(addresses, size * count)
        for one, some, offsets in self._by_space(space, addresses):
            if one == "global":
                self.known.check(offsets, size * count, writes=writes)
                yield one, some, self.known.words(size), self.known.place(offsets, size)
            else:
                memory = self.own[one]
                memory.check(offsets, size * count)
                yield one, some, memory.words(size), memory.place(offsets, lanes[some], size)

    @staticmethod
    def _by_space(space: str, addresses: Array) -> Any:
        if space:
            yield space, slice(None), addresses
            return
        window = addresses >> np.uint64(_WINDOW)
        for one, begin in {"global": 0, **WINDOWS}.items():
            some = np.flatnonzero(window == begin >> _WINDOW)
            if len(some):
                yield one, some, addresses[some] - np.uint64(begin)
