"""NumPy or CuPy by one flag: what the examples need of either beyond the functions that both have."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # of NumPy or CuPy: their types have no common stub


def array_module(device: str) -> ModuleType:
    """Return numpy for "cpu" and cupy for "cuda"; SystemExit says what is missing."""
    if device == "cpu":
        return np
    try:
        import cupy
    except ImportError as error:
        raise SystemExit(
            f"--device cuda needs CuPy: pip install 'flashcupy[cuda12]', or 'flashcupy[cuda13]' ({error})"
        ) from None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise SystemExit(f"--device cuda needs an NVIDIA GPU and its driver: {error}") from None
    return cupy


def device_of(xp: ModuleType) -> str:
    """Name the device that masks for arrays of `xp` live on."""
    return "cpu" if xp is np else f"cuda:{xp.cuda.Device().id}"


def to_host(array: Array) -> np.ndarray:
    """Return a NumPy array, copied if it was on a GPU."""
    return array if isinstance(array, np.ndarray) else array.get()


def wait(xp: ModuleType) -> None:
    """Wait until the device has done what it was given; calls on a processor are done when they return."""
    if xp is not np:
        xp.cuda.get_current_stream().synchronize()
