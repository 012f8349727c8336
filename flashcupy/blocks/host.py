"""Arguments of the constructors as NumPy arrays, with the dtype each must have."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy import arrays
from flashcupy.errors import UnsupportedError


def _of_kind(name: str, array: Any, kinds: str, wanted: str) -> np.ndarray:
    if arrays.in_device_memory(array):
        raise UnsupportedError(
            f"{name} is in device memory: on a device masks are made by from_blocks, from_ids, from_topk and "
            "from_dense alone, with all arrays there; others are made on the host, and go there by to_device"
        )
    result, _ = arrays.read(array, name)
    # An empty sequence has no dtype of its own; NumPy calls it float64.
    if result.dtype.kind not in kinds and not (result.size == 0 and not hasattr(array, "dtype")):
        raise TypeError(f"{name} must be {wanted}, got dtype {result.dtype}")
    return result


def bool_array(name: str, array: Any) -> npt.NDArray[np.bool_]:
    """Return `array` as NumPy bool, or raise TypeError."""
    return _of_kind(name, array, "b", "bool (True = visible)").astype(np.bool_, copy=False)


def int_array(name: str, array: Any) -> npt.NDArray[np.int64]:
    """Return `array` as int64, or raise TypeError for anything but integers."""
    result = _of_kind(name, array, "iu", "an integer array")
    if result.dtype == np.uint64 and result.size and result.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must fit in int64, got {result.max()}")
    return result.astype(np.int64, copy=False)


def pattern_array(name: str, array: Any) -> np.ndarray:
    """Return `array`, uint32 or bool, or raise TypeError."""
    result = _of_kind(name, array, "bu", "uint32 words or bool elements")
    if result.dtype.kind == "u" and result.dtype != np.uint32:
        raise TypeError(f"{name} must be uint32 words or bool elements, got dtype {result.dtype}")
    return result


def real_array(name: str, array: Any) -> npt.NDArray[np.floating]:
    """Return `array` as floating point that NumPy sorts, or raise TypeError for anything but real numbers."""
    result = _of_kind(name, array, "iufV", "a real array")
    if result.dtype.kind == "f":
        return result
    if result.dtype.kind == "V" and result.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be a real array, got dtype {result.dtype}")
    return result.astype(np.float32 if result.dtype.kind == "V" else np.float64)


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless `array` has that shape."""
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
