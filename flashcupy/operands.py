"""Arrays that accompany q: each must be where the call can use it, and outputs must be writable."""

from __future__ import annotations

from typing import Any

from flashcupy import arrays
from flashcupy.arrays import HOST, Array, on_host


def companion(x: Any, name: str, library: str, device: str) -> Array:
    """Read a large operand, which must come from the same device and library as q."""
    array, own = arrays.read(x, name)
    _require_device(array, name, device)
    if own != library:
        raise TypeError(f"{name} is a {own} array and q a {library} one, expected one library: convert {name}")
    return array


def small(x: Any, name: str, device: str) -> Array:
    """Read a small operand, which may come from the host or from q's device, in any library."""
    array, _ = arrays.read(x, name)
    if not on_host(array):
        _require_device(array, name, device)
    return array


def output(x: Any, name: str, library: str, device: str) -> Array:
    """View an array that results will be written into."""
    if not hasattr(x, "__dlpack__") and not arrays.in_device_memory(x):
        raise TypeError(f"{name} is a {type(x).__name__}, expected an array that can be written to")
    array, own = arrays.read(x, name)
    _require_device(array, name, device)
    if own != library:
        raise TypeError(f"{name} is a {own} array and the inputs are {library} ones, expected one library")
    if library == "jax" or (on_host(array) and not array.flags.writeable):
        raise TypeError(f"{name} is an immutable {own} array, expected memory that can be written to")
    if _shares_elements(array):
        raise ValueError(
            f"{name} is a broadcast view, or its elements overlap (strides {array.strides}), expected memory of its "
            "own for each"
        )
    return array


def _shares_elements(array: Array) -> bool:
    """Whether some elements may be the same memory: unless each stride reaches over all that lies within it."""
    if array.flags.c_contiguous:  # as every array without elements is
        return False
    reach = array.itemsize
    axes = [(abs(stride), extent) for stride, extent in zip(array.strides, array.shape, strict=True) if extent > 1]
    for stride, extent in sorted(axes):
        if stride < reach:
            return True
        reach += (extent - 1) * stride
    return False


def require(array: Array, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Check shape and dtype."""
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if arrays.dtype_name(array.dtype) not in dtypes:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {' or '.join(dtypes)}")


def _require_device(array: Array, name: str, device: str) -> None:
    own = arrays.device_name(array)
    if own != device:
        raise ValueError(f"{name} is {_place(own)} and q {_place(device)}, expected one device: move {name}")


def _place(device: str) -> str:
    return "in host memory" if device == HOST else f"on {device}"
