"""Stand-ins for CuPy: for its GPU calls, or for the memory of a GPU. Their fixtures are in conftest."""

from __future__ import annotations

import contextlib
import ctypes
from types import SimpleNamespace

import pytest
from oracles import oracle

from flashcupy.cuda import cupy_device


class CudaError(RuntimeError):
    def __init__(self, status, text="CUDA error"):
        super().__init__(text)
        self.status = status


@pytest.fixture
def fake(monkeypatch):
    """CuPy as far as devices, loading and launching go; `calls` has what it was asked for."""
    calls = []
    properties = {
        "name": b"Fake GPU",
        "major": 9,
        "minor": 0,
        "multiProcessorCount": 132,
        "sharedMemPerBlockOptin": 227 << 10,
    }

    def get_properties(ordinal):
        calls.append(("properties", ordinal))
        return properties

    @contextlib.contextmanager
    def device(ordinal):
        calls.append(("enter", ordinal))
        yield
        calls.append(("exit", ordinal))

    runtime = SimpleNamespace(
        CUDARuntimeError=CudaError,
        driverGetVersion=lambda: 12080,
        runtimeGetVersion=lambda: 12090,
        getDeviceProperties=get_properties,
        getDeviceCount=lambda: 2,
    )
    wrapper = SimpleNamespace(getVersion=lambda: (12, 9), getSupportedArchs=lambda: (70, 80, 90, 120))
    cuda = SimpleNamespace(
        Device=device, runtime=runtime, driver=SimpleNamespace(CUDADriverError=CudaError), nvrtc=wrapper
    )
    module = SimpleNamespace(cuda=cuda, ndarray=type("ndarray", (), {}), __version__="14.2.0")
    monkeypatch.setattr(cupy_device, "_cupy", lambda: module)
    monkeypatch.setattr(cupy_device, "_per_thread_default", lambda: False)
    cupy_device._nvrtc.cache_clear()
    yield SimpleNamespace(calls=calls, properties=properties, module=module, runtime=runtime, nvrtc=wrapper)
    cupy_device._nvrtc.cache_clear()


@pytest.fixture
def host_cupy(monkeypatch):
    """The real CuPy with host memory in place of a GPU's: arrays have metadata, and nothing computes."""
    cupy = oracle("cupy")
    memory = []

    def allocate(size):
        memory.append(ctypes.create_string_buffer(max(size, 1)))
        owned = cupy.cuda.UnownedMemory(ctypes.addressof(memory[-1]), size, memory[-1], 0)
        return cupy.cuda.MemoryPointer(owned, 0)

    monkeypatch.setattr(cupy.cuda, "Device", lambda ordinal: contextlib.nullcontext())
    before = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(allocate)
    yield cupy
    cupy.cuda.set_allocator(before)
