"""Mistakes in the layer over CuPy, one at a time: HOSTCUDA_FAULT=name chooses, ``-p hostcuda.faults`` makes it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from flashcupy.cuda import block_lists, launch
from flashcupy.cuda.borrowed import Borrowed
from flashcupy.cuda.cupy_device import CupyDevice


def _nothing(*_: Any) -> None:
    pass


def _read_late(self, array):
    import cupy

    pinned = cupy.cuda.alloc_pinned_memory(array.nbytes or 1)
    own = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
    own[...] = array
    result = cupy.empty(array.shape, array.dtype)
    result.set(own)
    own.view(np.uint8).fill(0x7E)  # who owns it writes again
    return result


def _on_the_default_stream(self, *arguments, launch=CupyDevice.launch):
    import cupy

    with cupy.cuda.Stream.null:
        launch(self, *arguments)


def _on_the_first_stream(self, *arguments, launch=CupyDevice.launch, streams=[]):  # noqa: B006
    import cupy

    streams.append(cupy.cuda.get_current_stream())
    with streams[0]:
        launch(self, *arguments)


def _of_the_default_stream(self, shape, dtype, empty=CupyDevice.empty):
    import cupy

    with cupy.cuda.Stream.null:
        return empty(self, shape, dtype)


class Fault(NamedTuple):
    """What stands in an attribute's place; `seen_by` is the test of test_gpu_lifetimes.py that has to fail."""

    owner: Any
    attribute: str
    mistake: Callable[..., Any]
    seen_by: str


FAULTS = {
    "borrowed memory is let go": Fault(CupyDevice, "keep_until_done", _nothing, "memory_of_others"),
    "lists go back to the stream that made them": Fault(CupyDevice, "keep_elsewhere", _nothing, "a_mask"),
    "host memory is read late": Fault(CupyDevice, "from_host", _read_late, "a_mask"),
    "launches go to the default stream": Fault(CupyDevice, "launch", _on_the_default_stream, "operands and own"),
    "threads share a stream": Fault(CupyDevice, "launch", _on_the_first_stream, "threads"),
    "the workspace is the default stream's": Fault(CupyDevice, "empty", _of_the_default_stream, "stream_ordered"),
    "graphs let go of borrowed memory": Fault(Borrowed, "keep_for_good", _nothing, "graph"),
    "graphs let go of a mask's lists": Fault(block_lists, "keep_for_graph", _nothing, "graph"),
    "graphs let go of their workspace": Fault(launch, "keep_new_for_graph", _nothing, "graph"),
}


def pytest_configure() -> None:
    setattr(*FAULTS[os.environ["HOSTCUDA_FAULT"]][:3])
