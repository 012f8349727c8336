"""Timing on a GPU: events of the stream, the L2 cache cold, memory as the pool counts it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, Protocol

from bench.gpu import nvml
from bench.harness import Call

# Far beyond any L2. Clearing it also keeps the device busy for some hundred microseconds, in which the host enqueues
# the call: the events then time the device, not the host.
FLUSH_BYTES = 1 << 30
HOST_CALLS = 5


class Gpu(Protocol):
    """One GPU, by way of an array module; the tests have one on NumPy."""

    xp: Any
    name: str  # "cuda:0"

    def sample(self, call: Call) -> float:
        """Return the seconds of one call on the device, its operands not in the L2 cache."""
        ...

    def synchronize(self) -> None: ...

    def peak_bytes(self, call: Call) -> int:
        """Return by how much a call made the array module's pool grow."""
        ...

    def capture(self, call: Call) -> Call:
        """Record a call in a CUDA graph, and return its replay."""
        ...

    def state(self) -> dict[str, int]:
        """Return the device's clock and temperature now, as `bench.gpu.nvml.state` does."""
        ...

    def release(self) -> None:
        """Give unused memory of every library back to the device."""
        ...


class CupyGpu:
    """The current device, by CuPy."""

    def __init__(self) -> None:
        import cupy

        self.xp = cupy
        self.name = f"cuda:{cupy.cuda.Device().id}"
        self._flush = cupy.empty(FLUSH_BYTES, "uint8")

    def sample(self, call: Call) -> float:
        stream = self.xp.cuda.get_current_stream()
        start, end = self.xp.cuda.Event(), self.xp.cuda.Event()
        self._flush.data.memset_async(0, self._flush.nbytes, stream)
        start.record(stream)
        result = call()
        end.record(stream)
        end.synchronize()
        del result
        return float(self.xp.cuda.get_elapsed_time(start, end)) * 1e-3

    def synchronize(self) -> None:
        self.xp.cuda.Device().synchronize()

    def peak_bytes(self, call: Call) -> int:
        pool = self.xp.get_default_memory_pool()
        self.synchronize()
        gc.collect()
        pool.free_all_blocks()
        before = pool.total_bytes()
        result = call()
        self.synchronize()
        del result
        return int(pool.total_bytes() - before)

    def capture(self, call: Call) -> Call:
        self.synchronize()  # the new stream does not wait for what made the operands
        stream = self.xp.cuda.Stream(non_blocking=True)
        with stream:
            call()  # leaves memory in the stream's pool: under capture none may be taken from the device
            stream.synchronize()
            stream.begin_capture()
            result = call()
            graph = stream.end_capture()

        def replay(keep: object = result) -> None:
            graph.launch(self.xp.cuda.get_current_stream())

        return replay

    def state(self) -> dict[str, int]:
        return nvml.state(self.xp.cuda.Device().pci_bus_id)

    def release(self) -> None:
        import sys

        gc.collect()
        self.xp.get_default_memory_pool().free_all_blocks()
        if (torch := sys.modules.get("torch")) is not None:
            torch.cuda.empty_cache()


def host_sample(call: Call, wait: Callable[[Any], object]) -> float:
    """Return the seconds of one of several calls enqueued in a row, by the host's clock."""
    start = time.perf_counter()
    for _ in range(HOST_CALLS):
        result = call()
    wait(result)
    return (time.perf_counter() - start) / HOST_CALLS
