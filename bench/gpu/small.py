"""Clocks for small calls, which the host bounds: what the host pays, what the caller waits for, what a graph leaves."""

from __future__ import annotations

import time
from collections.abc import Callable

from bench.gpu.candidates.base import Prepared, UnavailableError
from bench.gpu.device import Gpu

CALLS = 20


def host_timer(gpu: Gpu, prepared: Prepared) -> Callable[[], float]:
    """Return what times the host alone: calls enqueued in a row, nobody waits for them."""

    def sample() -> float:
        with prepared.around():
            gpu.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                prepared.call()
            elapsed = time.perf_counter() - start
            gpu.synchronize()
        return elapsed / CALLS

    return sample


def latency_timer(gpu: Gpu, prepared: Prepared) -> Callable[[], float]:
    """Return what times one call until its result is there."""

    def sample() -> float:
        with prepared.around():
            gpu.synchronize()
            start = time.perf_counter()
            prepared.call()
            gpu.synchronize()
            return time.perf_counter() - start

    return sample


def graph_timer(gpu: Gpu, prepared: Prepared) -> Callable[[], float]:
    """Return what times the replay of the call's graph on the device."""
    replay = None

    def sample() -> float:
        nonlocal replay
        if replay is None:
            if prepared.capture is None:
                raise UnavailableError("is not captured in a graph")
            with prepared.around():
                replay = prepared.capture(prepared.call)
        return gpu.sample(replay)

    return sample


TIMERS = {"host's time a call": host_timer, "time until the result": latency_timer, "replay of a graph": graph_timer}
