"""Lengths and cumulative lengths: checked by value on the host; on a device by metadata alone, since a look would wait.

``FLASHCUPY_CHECK=1`` has those on a device looked at all the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from flashcupy.arrays import Array, dtype_name, on_host, runtime
from flashcupy.metadata import broadcasts
from flashcupy.operands import small

_DTYPES = ("int32", "int64")


class PackedRows(NamedTuple):
    """One side of packed sequences.

    ``starts`` are the cumulative lengths: flat int64 on the host, or the caller's device array. ``limits`` bounds used
    lengths: one number each where the lengths are known, else `longest` for all.
    """

    starts: Array
    sequences: int
    longest: int
    limits: np.ndarray | int


def used_rows(x: Any, name: str, batch: tuple[int, ...], limits: np.ndarray | int, device: str) -> Array | None:
    """Used lengths within `limits`: flat int64 if they are on the host, as they came if on the device."""
    if x is None:
        return None
    array = _integers(x, name, device)
    if not broadcasts(array.shape, batch):
        raise ValueError(f"{name} has shape {array.shape}, expected one that broadcasts to {batch}")
    values = _values(array)
    if values is None:
        return array
    flat = np.broadcast_to(values, batch).astype(np.int64).reshape(-1)
    if np.any(flat < 0) or np.any(flat > limits):
        most = limits if isinstance(limits, int) else "the sequence's own length"
        raise ValueError(f"{name} runs from {flat.min()} to {flat.max()}, expected values from 0 to {most}")
    return flat if on_host(array) else array


def packed_rows(side: str, cu_seqlens: Any, max_seqlen: Any, total: int, device: str) -> PackedRows:
    """Check the cumulative lengths of q's or k's sequences in `total` packed rows."""
    name = f"cu_seqlens_{side}"
    array = _integers(cu_seqlens, name, device)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}, expected (sequences + 1,)")
    values = _values(array)
    if values is None:
        longest = _max_seqlen(max_seqlen, side, None)
        return PackedRows(array, array.size - 1, longest, longest)
    starts = values.astype(np.int64)
    lengths = np.diff(starts)
    _check_starts(starts, lengths, name, total)
    longest = _max_seqlen(max_seqlen, side, lengths)
    return PackedRows(starts if on_host(array) else array, lengths.size, longest, lengths)


def _integers(x: Any, name: str, device: str) -> Array:
    array = small(x, name, device)
    if isinstance(x, (list, tuple)) and array.size == 0:
        array = array.astype(np.int64)
    if dtype_name(array.dtype) not in _DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected int32 or int64")
    return array


def _values(array: Array) -> np.ndarray | None:
    if on_host(array):
        return array
    from flashcupy.cuda.verdicts import check_mode

    device = runtime().device_of(array)
    if check_mode() != "values":
        return None
    with device.scope():
        return None if device.is_capturing() else device.to_host(array)


def _check_starts(starts: np.ndarray, lengths: np.ndarray, name: str, total: int) -> None:
    if starts[0] != 0:
        raise ValueError(f"{name} starts at {starts[0]}, expected 0")
    if np.any(lengths < 0):
        fall = int(np.argmax(lengths < 0))
        raise ValueError(f"{name} falls from {starts[fall]} to {starts[fall + 1]}, expected lengths that only add up")
    if starts[-1] > total:
        raise ValueError(f"{name} ends at {starts[-1]}, expected at most the {total} packed rows")


def _max_seqlen(x: Any, side: str, lengths: np.ndarray | None) -> int:
    name = f"max_seqlen_{side}"
    longest = 0 if lengths is None else int(lengths.max(initial=0))
    if x is None:
        if lengths is None:
            raise ValueError(f"{name} is None, expected an int: cu_seqlens_{side} is on a device and is not read back")
        return longest
    value = _integers(x, name, "cpu")
    if value.ndim != 0:
        raise TypeError(f"{name} has shape {value.shape}, expected an int")
    if value < longest:
        expected = "a length" if lengths is None else f"at least {longest}, the longest sequence"
        raise ValueError(f"{name} is {value}, expected {expected}")
    return int(value)
