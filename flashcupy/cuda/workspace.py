"""Temporary memory of a call: from the device's pool, or the caller's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from flashcupy.cuda.device import Device, runtime

ALIGNMENT = 256
_BYTE = np.dtype(np.uint8)


class _Given(NamedTuple):
    pointer: int
    nbytes: int


_local = threading.local()


@contextmanager
def given(pointer: int, nbytes: int) -> Iterator[None]:
    """Serve the calling thread's next call from `nbytes` at `pointer`, on the device of its arrays."""
    before = getattr(_local, "given", None)
    _local.given = _Given(pointer, nbytes)
    try:
        yield
    finally:
        _local.given = before


@contextmanager
def not_given() -> Iterator[None]:
    """Go back to the pool: for what a call's first use runs besides it."""
    before, _local.given = getattr(_local, "given", None), None
    try:
        yield
    finally:
        _local.given = before


def take(device: Device, nbytes: int) -> tuple[int, Any]:
    """Address of `nbytes` for one call, and what keeps them alive until its launches are queued.

    Raises
    ------
    ValueError
        If the caller's own memory is too small.
    """
    own: _Given | None = getattr(_local, "given", None)
    if own is None:
        # Freed by who lets go of it, which is in stream order: the pool gives it to later work of this stream only.
        array = device.empty((nbytes,), _BYTE)
        return runtime().pointer(array), array
    if nbytes > own.nbytes:
        raise ValueError(f"workspace has {own.nbytes} bytes, expected at least {nbytes}")
    return own.pointer, None
