"""A caller's stream and context: taken over for a call, and put back after it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class CudaStream:
    """A stream that somebody else made, by the protocol that CuPy takes it over with."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer


_local = threading.local()


def thread_token() -> object:
    """Tell the thread's own default stream from that of any other thread, past or to come."""
    if not hasattr(_local, "token"):
        _local.token = object()
    return _local.token


@contextmanager
def own_context(driver: Any) -> Iterator[None]:
    """Restore the thread's context: the runtime restores the device, which selects the device's primary context."""
    try:
        before = driver.ctxGetCurrent()
    except driver.CUDADriverError:  # the driver is not even initialised: there is nothing to go back to
        yield
        return
    try:
        yield
    finally:
        if driver.ctxGetCurrent() != before:
            driver.ctxSetCurrent(before)  # 0, for a thread that had none, unsets it
