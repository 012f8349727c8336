"""What a call costs on the host before a kernel starts: device arrays that are metadata only, and an empty backend.

A row is a thousand calls, so that its milliseconds are microseconds of one call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np

import flashcupy
from bench.harness import OURS, Case
from flashcupy import backend
from flashcupy.cuda import device as device_module

CALLS = 1000


class _Array:
    """Metadata of a row-major device array, apart from all others."""

    _free = 1 << 40

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self.size, self.itemsize = math.prod(shape), dtype.itemsize
        self.nbytes = self.size * self.itemsize
        self.strides = tuple(self.itemsize * math.prod(shape[axis + 1 :]) for axis in range(self.ndim))
        self.flags = SimpleNamespace(c_contiguous=True)
        self.address = _Array._free
        _Array._free += self.nbytes

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False), "version": 3}


class _Runtime:
    """Stands for the array library: its own costs are not counted, so what it hands out is there already."""

    name = "cuda:0"

    def __init__(self) -> None:
        self._results: dict[tuple[tuple[int, ...], np.dtype], _Array] = {}

    def read(self, x: Any, name: str) -> tuple[Any, str]:
        return x, "cupy"

    def is_array(self, array: object) -> bool:
        return isinstance(array, _Array)

    def write_back(self, array: Any, library: str) -> Any:
        return array

    def pointer(self, array: _Array) -> int:
        return array.address

    def device_of(self, array: Any) -> _Runtime:
        return self

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> _Array:
        key = shape, dtype
        if key not in self._results:
            self._results[key] = _Array(shape, dtype)
        return self._results[key]

    def empty_like(self, model: _Array, shape: tuple[int, ...], dtype: np.dtype) -> _Array:
        return self.empty(shape, dtype)


@contextmanager
def _stubbed() -> Iterator[None]:
    """Install the runtime, and a backend that computes nothing."""
    stub = SimpleNamespace(forward=lambda problem, out, lse, keep: None, backward=lambda *_, **__: None)
    package, installed = backend._package, list(device_module._installed)
    device_module._installed[:] = [_Runtime()]  # type: ignore[list-item]
    backend._package = lambda name: stub  # type: ignore[assignment]
    try:
        yield
    finally:
        backend._package = package
        device_module._installed[:] = installed


def _repeat(call: Callable[[], object]) -> None:
    with _stubbed():
        for _ in range(CALLS):
            call()


def cases(quick: bool) -> Iterator[Case]:
    """Yield forward calls with few and many options, on device and host arrays, and a backward."""
    q, out = (_Array((4, 16, 1024, 64), np.dtype(np.float16)) for _ in range(2))
    host = np.empty((4, 16, 16, 64), np.float16)
    options: dict[str, Any] = {
        "bias": _Array((1024, 1024), q.dtype),
        "mask": _Array((4, 1, 1024, 1024), np.dtype(np.bool_)),
        "sinks": _Array((16,), np.dtype(np.float32)),
        "kv_lengths": _Array((4,), np.dtype(np.int32)),
        "softcap": 20.0,
        "window": (256, 0),
    }
    with _stubbed():
        _, residuals = flashcupy.attention_fwd(q, q, q, causal=True)
    rows = {
        "attention": partial(flashcupy.attention, q, q, q, causal=True),
        "attention, out= given": partial(flashcupy.attention, q, q, q, causal=True, out=out),
        "attention, many options": partial(flashcupy.attention, q, q, q, **options),
        "attention on host arrays": partial(flashcupy.attention, host, host, host, causal=True),
        "attention_fwd": partial(flashcupy.attention_fwd, q, q, q, causal=True),
        "attention_bwd": partial(flashcupy.attention_bwd, q, residuals),
    }
    for name, call in rows.items():
        yield Case(f"host, {CALLS} calls: ms are microseconds a call", name, {OURS: partial(_repeat, call)})
