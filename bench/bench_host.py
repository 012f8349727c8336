"""What a call costs on the host: everything but the array library and the launches themselves, which are stubs.

A row is a thousand calls, so that its milliseconds are microseconds of one call.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import flashcupy
from bench.harness import OURS, Case
from flashcupy.cuda import device as device_module
from flashcupy.cuda.device import DeviceProperties

CALLS = 1000


class StubArray:
    """Metadata of a row-major device array, apart from all others."""

    _free = 1 << 40

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, address: int | None = None) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self.size, self.itemsize = math.prod(shape), dtype.itemsize
        self.nbytes = self.size * self.itemsize
        self.strides = tuple(self.itemsize * math.prod(shape[axis + 1 :]) for axis in range(self.ndim))
        self.flags = SimpleNamespace(c_contiguous=True)
        if address is None:
            address = StubArray._free
            StubArray._free += self.nbytes
        self.address = address

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}


class Gpu:
    """Stands for the array library and a device: their own costs are not counted, so what they hand out is there."""

    name = "cuda:0"
    properties = DeviceProperties("stub", (9, 0), "stub", 1, 0, "stub", "stub")
    _scope: AbstractContextManager[None] = nullcontext()

    def __init__(self) -> None:
        self._results: dict[tuple[tuple[int, ...], np.dtype], StubArray] = {}

    def read(self, x: Any, name: str) -> tuple[Any, str]:
        return x, "cupy"

    def write_back(self, array: Any, library: str) -> Any:
        return array

    def pointer(self, array: StubArray) -> int:
        return array.address

    def device_of(self, array: Any) -> Gpu:
        return self

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> StubArray:
        key = shape, dtype
        if key not in self._results:
            self._results[key] = StubArray(shape, dtype)
        return self._results[key]

    def empty_like(self, model: StubArray, shape: tuple[int, ...], dtype: np.dtype) -> StubArray:
        return self.empty(shape, dtype)

    def scope(self) -> AbstractContextManager[None]:
        return self._scope

    def on_stream(self, stream: int) -> AbstractContextManager[None]:
        return self._scope

    def view(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype) -> StubArray:
        return StubArray(shape, dtype, pointer)

    def device(self, ordinal: int) -> Gpu:
        return self

    def count(self) -> int:
        return 1

    def is_capturing(self) -> bool:
        return False

    def current_stream(self) -> Hashable:
        return 0

    def keep_until_done(self, arrays: Iterable[StubArray]) -> None:
        pass

    def keep_elsewhere(self, memory: Any, stream: Hashable) -> None:
        pass

    def from_host(self, array: np.ndarray) -> StubArray:
        return StubArray(array.shape, array.dtype)

    def synchronize(self) -> None:
        pass

    def compile(self, source: str, entry: str, include: Path) -> bytes:
        return entry.encode()

    def load(self, path: Path, entry: str, shared_bytes: int) -> str:
        return entry

    def launch(self, kernel: Any, grid: int, block: int, shared_bytes: int, params: bytearray) -> None:
        pass


@contextmanager
def _stubbed(gpu: Gpu) -> Iterator[None]:
    """Install a device that launches nothing, and a kernel cache of its own."""
    installed, before = list(device_module._installed), dict(os.environ)
    device_module._installed[:] = [gpu]  # type: ignore[list-item]
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FLASHCUPY_CACHE_DIR": folder, "FLASHCUPY_CHECK": "off"}
        try:
            yield
        finally:
            device_module._installed[:] = installed
            for name in ("FLASHCUPY_CACHE_DIR", "FLASHCUPY_CHECK"):
                os.environ.pop(name)
            os.environ |= before


def repeat_on(gpu: Gpu, call: Callable[[], object]) -> None:
    """Call a thousand times, on a stub of a device."""
    with _stubbed(gpu):
        for _ in range(CALLS):
            call()


def cases(quick: bool) -> Iterator[Case]:
    """Yield forward calls with few and many options, on device and host arrays, and a backward."""
    q, out = (StubArray((4, 16, 1024, 64), np.dtype(np.float16)) for _ in range(2))
    packed, cu = StubArray((16, 4096, 64), np.dtype(np.float16)), np.arange(0, 4097, 1024, dtype=np.int32)
    options: dict[str, Any] = {
        "bias": StubArray((1024, 1024), q.dtype),
        "mask": StubArray((4, 1, 1024, 1024), np.dtype(np.bool_)),
        "sinks": StubArray((16,), np.dtype(np.float32)),
        "kv_lengths": StubArray((4,), np.dtype(np.int32)),
        "softcap": 20.0,
        "window": (256, 0),
    }
    gpu = Gpu()
    with _stubbed(gpu):
        _, residuals = flashcupy.attention_fwd(q, q, q, causal=True)
    mask = flashcupy.BlockMask.causal((1024, 1024))
    rows = {
        "attention": partial(flashcupy.attention, q, q, q, causal=True),
        "attention, out= given": partial(flashcupy.attention, q, q, q, causal=True, out=out),
        "attention, many options": partial(flashcupy.attention, q, q, q, **options),
        "attention, block_mask of the host": partial(flashcupy.attention, q, q, q, block_mask=mask),
        "attention_varlen, cu_seqlens on the host": partial(flashcupy.attention_varlen, packed, packed, packed, cu, cu),
        "attention_fwd": partial(flashcupy.attention_fwd, q, q, q, causal=True),
        "attention_bwd": partial(flashcupy.attention_bwd, q, residuals),
    }
    for name, call in rows.items():
        yield Case(f"host, {CALLS} calls: ms are microseconds a call", name, {OURS: partial(repeat_on, gpu, call)})
