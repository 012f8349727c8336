"""The backend of tests whose kernels are NVRTC's PTX."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

from backends import EmuBackend


class Target(NamedTuple):
    """What is compiled for, and what of: an architecture, the GPU's compute capability, NVRTC's major version."""

    arch: str
    compute_capability: tuple[int, int]
    compiler: int


# Both compilers, and each of the ways that kernels have of their own for an architecture.
TARGETS = {
    "sm75": Target("compute_75", (7, 5), 13),
    "sm80": Target("compute_80", (8, 0), 13),
    "sm90": Target("compute_90a", (9, 0), 12),
}


class PtxBackend(EmuBackend):
    """`target` is one of `TARGETS`: the generic kernels serve on the first, tensor cores on the others."""

    ordinal = 1  # lists that a mask has on the emulator are not in memory that is known here

    def __init__(self, target: str) -> None:
        super().__init__("generic" if target == "sm75" else "sm80")
        self.name = f"ptx_{target}"
        self._target = TARGETS[target]

    @functools.cached_property
    def device(self) -> Any:
        from ptx.device import PtxDevice

        return PtxDevice(self._target, self.ordinal)
