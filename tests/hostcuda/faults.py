"""Mistakes in the layer over CuPy, one at a time: HOSTCUDA_FAULT=name chooses, ``-p hostcuda.faults`` makes it."""

from __future__ import annotations

import os

import numpy as np

from flashcupy.cuda.cupy_device import CupyDevice


def _borrowed_memory_is_let_go(self, arrays):
    pass


def _lists_go_back_to_the_stream_that_made_them(self, memory, stream):
    pass


def _host_memory_is_read_late(self, array):
    import cupy

    pinned = cupy.cuda.alloc_pinned_memory(array.nbytes or 1)
    own = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
    own[...] = array
    result = cupy.empty(array.shape, array.dtype)
    result.set(own)
    own.view(np.uint8).fill(0x7E)  # who owns it writes again
    return result


FAULTS = {
    "borrowed memory is let go": ("keep_until_done", _borrowed_memory_is_let_go),
    "lists go back to the stream that made them": ("keep_elsewhere", _lists_go_back_to_the_stream_that_made_them),
    "host memory is read late": ("from_host", _host_memory_is_read_late),
}


def pytest_configure() -> None:
    setattr(CupyDevice, *FAULTS[os.environ["HOSTCUDA_FAULT"]])
