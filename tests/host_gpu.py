"""A GPU for the benchmark's tests: NumPy in its place."""

from __future__ import annotations

import time

import numpy as np


class HostGpu:
    """What `bench.gpu` asks of a GPU, on NumPy."""

    xp = np
    name = "cpu"

    def sample(self, call):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def synchronize(self):
        pass

    def peak_bytes(self, call):
        call()
        return 3 << 20

    def capture(self, call):
        return call

    def state(self):
        return {"sm_mhz": 1980, "celsius": 45}

    def release(self):
        pass
