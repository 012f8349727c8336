"""Backends that every attention test runs on, and how arrays get there and back.

Tests keep NumPy arrays in their hands. A backend's ``api`` has the calls of flashcupy on such arrays: each call brings
them to the backend's memory, aliasing and strides as they are, and the results back.
"""

from __future__ import annotations

import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from device_api import DeviceApi

import flashcupy as fc
from flashcupy.cpu import schedule

# What NumPy arrays can be and device arrays cannot. A test that is about one of these asks for it by `requires`.
_HOST_ONLY = {
    "byte order": "arrays in device memory are in native byte order",
    "read-only flag": "arrays in device memory carry no flag that says read-only",
    "sequences as q": "lists, subclasses and objects that NumPy converts become host arrays",
    "NumPy internals": "the test looks into the NumPy backend",
}


class NumpyBackend:
    """Host arrays; `small_tiles` makes problems of a few dozen rows walk many tiles."""

    name = "numpy"
    api = fc

    def requires(self, what: str) -> None:
        """Skip the calling test where arrays of this backend cannot have a property."""
        assert what in _HOST_ONLY

    @contextmanager
    def active(self) -> Iterator[None]:
        fc.set_num_threads(2)  # however many BLAS has: tasks overlap, and wait for their turn
        try:
            yield
        finally:
            fc.set_num_threads(None)

    @contextmanager
    def small_tiles(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedule, "BLOCK_ROWS", 16)
            patch.setattr(schedule, "TILE_AREA", 16 * 32)
            patch.setattr(schedule, "STACK_AREA", 3 * 16 * 32)
            patch.setattr(schedule, "MAX_TILE_COLUMNS", 64)
            yield


class DeviceBackend(ABC):
    """Arrays that are not in NumPy's reach."""

    name: str

    @functools.cached_property
    def api(self) -> DeviceApi:
        return DeviceApi(self)

    def requires(self, what: str) -> None:
        pytest.skip(_HOST_ONLY[what])

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Serve device arrays while a test runs."""

    @abstractmethod
    def put_bytes(self, content: np.ndarray, alignment: int) -> tuple[Any, int]:
        """Copy uint8 (n,) to memory whose address is congruent to `alignment` modulo 64; return (bytes, offset)."""

    @abstractmethod
    def view(self, memory: Any, offset: int, like: np.ndarray) -> Any:
        """An array over what `put_bytes` returned, with the metadata of `like`."""

    @abstractmethod
    def get(self, x: Any) -> np.ndarray:
        """Copy to the host, in the memory order of `x`."""

    def small_tiles(self) -> AbstractContextManager[None]:
        from flashcupy.cuda.config import use_tiles

        return use_tiles("small")


class EmuBackend(DeviceBackend):
    """The kernels of kernels_cu/ on the SIMT emulator: every race and stray access fails the test.

    The GPU emulated is one of those whose calls `family` is the first to serve.
    """

    ordinal = 0  # by which masks remember what they have on a device

    def __init__(self, family: str = "generic") -> None:
        self.name = {"generic": "emu", "sm80": "emu_sm80"}[family]
        self._compute_capability = {"generic": (7, 5), "sm80": (8, 0)}[family]

    @functools.cached_property
    def device(self) -> Any:
        from emu.device import EmuDevice

        return EmuDevice(compute_capability=self._compute_capability)

    @contextmanager
    def active(self) -> Iterator[None]:
        from emu.arrays import EmuRuntime

        from flashcupy.cuda import device as device_module

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device_module, "_installed", [EmuRuntime(*[self.device] * (self.ordinal + 1))])
            patch.setenv("FLASHCUPY_CACHE_DIR", str(EMU_CACHE))
            patch.setenv("FLASHCUPY_CHECK", "off")  # the test is the check
            self.device.launches = 0  # lane orders take turns: in a single test as in a whole run
            yield

    def put_bytes(self, content: np.ndarray, alignment: int) -> tuple[Any, int]:
        # No byte more, wherever it lies: what a kernel reads beside an array is caught, and not by luck of its address.
        memory = self.device.empty(content.shape, content.dtype, off=alignment)
        memory._host[...] = content
        return memory, 0

    def view(self, memory: Any, offset: int, like: np.ndarray) -> Any:
        from emu.arrays import EmuArray

        return EmuArray(np.ndarray(like.shape, like.dtype, memory._host, offset, like.strides), self.device)

    def get(self, x: Any) -> np.ndarray:
        return np.array(x._host, order="K", copy=True)


class CupyBackend(DeviceBackend):
    """A GPU."""

    name = "cupy"

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def put_bytes(self, content: np.ndarray, alignment: int) -> tuple[Any, int]:
        import cupy

        memory = cupy.full((content.size + 63,), 0xFF, np.uint8)
        offset = (alignment - memory.data.ptr) % 64
        memory[offset : offset + content.size] = cupy.asarray(content)
        return memory, offset

    def view(self, memory: Any, offset: int, like: np.ndarray) -> Any:
        import cupy

        return cupy.ndarray(like.shape, like.dtype, memory.data + offset, like.strides)

    def get(self, x: Any) -> np.ndarray:
        outermost_first = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
        return x.transpose(outermost_first).get().transpose(np.argsort(outermost_first))


@functools.cache
def why_no_gpu() -> str | None:
    """Return the reason to skip tests marked gpu, or None."""
    from flashcupy.cuda.cupy_device import CupyRuntime

    try:
        return None if CupyRuntime().count() else "needs an NVIDIA GPU and its driver"
    except ImportError as error:
        return f"needs CuPy: {error}"


# Kernels are compiled once, not once a run.
EMU_CACHE = Path(os.environ.get("FLASHCUPY_TEST_CACHE", Path(__file__).parent / "emu" / "build" / "kernels"))

BACKENDS = [
    pytest.param(NumpyBackend(), id="numpy"),
    pytest.param(EmuBackend(), id="emu"),
    pytest.param(EmuBackend("sm80"), id="emu_sm80"),
    pytest.param(CupyBackend(), id="cupy", marks=pytest.mark.gpu),
]
