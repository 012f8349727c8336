"""Puts the stand-in in the place of CUDA, for this process. See README.md.

``python -m pytest -p hostcuda.preload`` does, with tests/ on PYTHONPATH.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import itertools
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from emu import build as emulator_build
from emu.device import EmuDevice, Settings, runtime

from flashcupy.cuda import cupy_device
from hostcuda import build
from hostcuda.cupy_kernels import CupyKernel

_FAILED = 719  # cudaErrorLaunchFailure

_FIND = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int))
_RUN = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, *[ctypes.c_uint] * 3, ctypes.c_void_p, ctypes.c_int)
_KNOW = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int)

# Races between threads are for the tests that run the emulator by itself.
_emulator = EmuDevice(settings=Settings(detect_races=False), compute_capability=(9, 0))
_numbers = itertools.count(1)
_kernels: dict[int, Callable[..., Any]] = {}
_regions: dict[int, int] = {}
_sources: dict[str, str] = {}  # that CuPy wanted to have compiled


@contextmanager
def _without_finalizers() -> Iterator[None]:
    """They may call CUDA, which is in the middle of a call."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _find(module: bytes, name: bytes, sizes: Any) -> int:
    try:
        with _without_finalizers():
            kernel, its_sizes = _load(module.decode(), name.decode())
    except Exception:
        traceback.print_exc()
        return 0
    for n, size in enumerate((*its_sizes, -1)):
        sizes[n] = size
    number = next(_numbers)
    _kernels[number] = kernel
    return number


def _load(module: str, name: str) -> tuple[Callable[..., Any], list[int]]:
    if module in _sources:
        own = CupyKernel(_sources[module], name)
        return lambda grid, block, shared, parameters: own(parameters), own.sizes
    kernel = _emulator.load(Path(module), name, _emulator.properties.shared_memory)

    def launch(grid: int, block: int, shared: int, parameters: bytes) -> None:
        _emulator.launch(kernel, grid, block, shared, parameters)

    return launch, [kernel.params_bytes]


def _run(number: int, grid: int, block: int, shared: int, parameters: int, size: int) -> int:
    try:
        with _without_finalizers():
            _kernels[number](grid, block, shared, ctypes.string_at(parameters, size))
    except Exception:
        traceback.print_exc()
        return _FAILED
    return 0


def _know(begin: int, size: int, exists: int) -> None:
    if exists:
        _regions[begin] = runtime().emu_register(begin, size, True, b"an allocation")
    else:
        runtime().emu_unregister(_regions.pop(begin))


def _compile_for_cupy(source: str, *_: Any, **__: Any) -> tuple[bytes, None]:
    name = f"source {next(_numbers)}"
    _sources[name] = source
    return name.encode(), None


def _compile_for_emulator(source: str, entry: str, arch: str, include: Path) -> tuple[bytes, None]:
    return emulator_build.compile_kernel(source, entry, include), None


_callbacks = _FIND(_find), _RUN(_run), _KNOW(_know)


def install() -> None:
    """Give this process the stand-in for CUDA; to be called before anything imports CuPy."""
    if "cupy" in sys.modules:
        raise RuntimeError("CuPy is imported already, with the CUDA runtime of its own")
    folder = tempfile.mkdtemp(prefix="flashcupy-hostcuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ |= {"CUPY_CACHE_DIR": f"{folder}/cupy", "FLASHCUPY_CACHE_DIR": f"{folder}/flashcupy"}
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB's reductions are compiled into CuPy
    ctypes.CDLL(str(build.library()), ctypes.RTLD_GLOBAL).hostcuda_connect(*_callbacks)
    ctypes.CDLL(str(build.site() / build.CUBLAS), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(build.site()))
    importlib.import_module(build.CUBLAS_MODULE.replace("/", "."))  # before CuPy looks for NVIDIA's files
    compiler = importlib.import_module("cupy.cuda.compiler")
    compiler._compile_using_nvrtc_no_warning = _compile_for_cupy
    cupy_device.nvrtc_compile = _compile_for_emulator


def pytest_load_initial_conftests() -> None:
    install()
