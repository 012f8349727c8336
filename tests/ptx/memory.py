"""State spaces and generic addresses: PTX ISA, "State Spaces". Bytes are where they are in this process."""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np

from ptx.values import Array, flush

# Where the windows of state spaces begin among generic addresses: beyond all that a process has, and not at multiples
# of 2^32, so that the lower half of a generic address is no address in its space.
_WINDOW = 60
WINDOWS = {space: (n << _WINDOW) + (1 << 24) for n, space in enumerate(("shared", "param", "local"), 1)}
_ORIGIN = 64  # of the arrays of all memory: no view may begin at 0
_Part = tuple[str, Any, Array, Array]  # a space, which lanes, its words, and their places there


class AccessError(Exception):
    """An access that a GPU would refuse, or must not be made; the message says which."""


class GlobalMemory:
    """What kernels may touch: host memory that was made known, each region by begin and end."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._regions: list[tuple[int, int, bool]] = []  # begin, end, writable
        self._bounds: dict[bool, Any] = {}  # begins and ends of all regions, and of those that can be written
        self._whole: dict[int, np.ndarray] = {}

    def know(self, owner: Any, begin: int, nbytes: int, writable: bool) -> weakref.finalize:
        """Let kernels touch memory for as long as `owner` lives."""
        region = (begin, begin + nbytes, writable)
        at = bisect.bisect(self._begins, begin)
        self._begins.insert(at, begin)
        self._regions.insert(at, region)
        self._bounds.clear()
        forget = weakref.finalize(owner, self._forget, region)
        forget.atexit = False
        return forget

    def _forget(self, region: tuple[int, int, bool]) -> None:
        at = self._regions.index(region)
        del self._begins[at], self._regions[at]
        self._bounds.clear()

    def check(self, addresses: Array, nbytes: Array | np.uint64, *, writes: bool) -> None:
        """Raise unless each address and as many bytes behind it are in one region."""
        begins, ends = self._known(writes)
        end = ends[np.searchsorted(begins, addresses, side="right") - 1]
        outside = (addresses >= end) | (nbytes > end - addresses)  # the sum of both might begin again at 0
        if outside.any():
            first = int(np.asarray(addresses)[np.argmax(outside)])
            begin, end, _ = self._regions[bisect.bisect(self._begins, first) - 1] if self._regions else (0, 0, False)
            raise AccessError(
                f"bounds: {'write to' if writes else 'read of'} {first:#x}, byte {first - begin} of {end - begin} there"
            )

    def _known(self, writable: bool) -> Any:
        if writable not in self._bounds:
            regions = [(0, 0), *((begin, end) for begin, end, can in self._regions if can or not writable)]
            self._bounds[writable] = np.array(regions, np.uint64).T.copy()
        return self._bounds[writable]

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

    def __init__(self, space: str, nbytes: int, group_of_lane: Array, content: bytes = b"") -> None:
        self.space, self.nbytes = space, nbytes
        self._stride = -(-nbytes // 128) * 128
        whole = content.ljust(self._stride, b"\xff") * (int(group_of_lane.max()) + 1)
        self.bytes = np.frombuffer(bytearray(whole), np.uint8)
        self._start = group_of_lane.astype(np.int64) * self._stride

    def check(self, addresses: Array, nbytes: int) -> None:
        # A 64-bit sum with what is taken from a generic address may have begun again at 0: it is large then.
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


class Spaces:
    """All memory of the blocks that run together."""

    def __init__(
        self, known: GlobalMemory, params: bytes, shared_bytes: int, local_bytes: int, block_of_lane: Array
    ) -> None:
        lanes = len(block_of_lane)
        self.known = known
        self._own = {
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
        """Atomic additions of float32."""
        for _, some, words, places in self._parts(space, addresses, lanes, 4, len(values), writes=True):
            for n, value in enumerate(values):
                once, which = np.unique(places + n, return_inverse=True)
                sums = words[once].view(np.float32)
                _add_one_by_one(sums, which, value[some])
                words[once] = sums.view(np.uint32)

    def check_copies(self, to: Array, source: Array, size: int, read_bytes: Array) -> None:
        """Raise unless both ends of asynchronous copies are there, of the source what is read."""
        self._own["shared"].check(to, size)
        some = np.flatnonzero(read_bytes)
        if len(some):
            self.known.check(source[some], read_bytes[some].astype(np.uint64), writes=False)

    def _parts(
        self, space: str, addresses: Array, lanes: Array, size: int, count: int, *, writes: bool
    ) -> Iterator[_Part]:
        """The memories that the addresses are of."""
        require_aligned(addresses, size * count)
        for one, some, offsets in self._by_space(space, addresses):
            if writes and one == "param":
                raise AccessError("bounds: a write to the parameters")
            if one == "global":
                self.known.check(offsets, np.uint64(size * count), writes=writes)
                yield one, some, self.known.words(size), self.known.place(offsets, size)
            else:
                memory = self._own[one]
                memory.check(offsets, size * count)
                yield one, some, memory.words(size), memory.place(offsets, lanes[some], size)

    @staticmethod
    def _by_space(space: str, addresses: Array) -> Iterator[tuple[str, Any, Array]]:
        if space or not len(addresses):
            yield space or "global", slice(None), addresses
            return
        window = addresses >> np.uint64(_WINDOW)
        if int(window.max()) > len(WINDOWS):
            raise AccessError(f"bounds: the generic address {int(addresses.max()):#x}")
        for one, begin in {"global": 0, **WINDOWS}.items():
            some = np.flatnonzero(window == begin >> _WINDOW)
            if len(some):
                yield one, some, addresses[some] - np.uint64(begin)


def _add_one_by_one(sums: Array, which: Array, own: Array) -> None:
    """Add own[n] to sums[which[n]], n after n; operands and results are flushed: PTX ISA, "red"."""
    sums[...] = flush(sums)
    own, left = flush(own), np.arange(len(own))
    while len(left):
        now = left[np.unique(which[left], return_index=True)[1]]
        sums[which[now]] = flush(sums[which[now]] + own[now])
        left = np.setdiff1d(left, now, assume_unique=True)
