"""Whether arrays share memory: results must not be written over what is still to be read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from flashcupy.arrays import Array, on_host, runtime

# np.shares_memory solves a Diophantine problem; this bounds it, and what stays undecided counts as overlap.
_WORK = 100_000


def require_no_overlap(array: Array, name: str, others: Iterable[tuple[str, Array | None]]) -> None:
    host = on_host(array)
    low, high = (0, 0) if host else _bounds(array)
    for other_name, other in others:
        if other is None or on_host(other) != host:
            continue
        if not host:
            other_low, other_high = _bounds(other)
            if low >= other_high or other_low >= high:
                continue
        if _overlap(array, other):
            raise ValueError(f"{name} shares memory with {other_name}, expected memory of its own")


def _overlap(a: Array, b: Array) -> bool:
    if not on_host(a):
        a, b = _Extents(a).as_numpy(), _Extents(b).as_numpy()
    try:
        return np.shares_memory(a, b, max_work=_WORK)  # type: ignore[arg-type]  # the stub knows only -1 and 0
    except np.exceptions.TooHardError:
        return True


def _bounds(array: Array) -> tuple[int, int]:
    """Addresses of the first byte of a device array and of the one past its last."""
    low = high = runtime().pointer(array)
    if array.flags.c_contiguous:  # an array without elements is
        return low, low + array.nbytes
    for extent, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (extent - 1) * stride
        else:
            high += (extent - 1) * stride
    return low, high + array.itemsize


class _Extents:
    """Tells NumPy where a device array lies, for address arithmetic; the array made of it must never be read."""

    def __init__(self, array: Array) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": array.shape,
            "strides": array.strides,
            "typestr": f"|V{array.itemsize}",
            "data": (runtime().pointer(array), True),
        }

    def as_numpy(self) -> np.ndarray:
        return np.asarray(self)
