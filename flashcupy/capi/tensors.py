"""Tensors of the C interface as arrays: memory of the caller's, viewed where it lies."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from flashcupy import arrays
from flashcupy.arrays import Array
from flashcupy.capi.places import cuda_device

_ON_HOST = (1, 3)  # memory of the CPU, and page-locked memory
_ON_CUDA = (2, 13)  # memory of a device, and managed memory
_MOST_DIMS = 32
_END = 1 << 63
# Addresses that nobody has, far from each other: of tensors whose metadata is all that counts.
NOWHERE = 1 << 56

Tensor = Any  # a cffi pointer to flashcupy_tensor, perhaps NULL


class TensorReader:
    """Views the tensors of one call. With `metadata_only` data may be NULL; what stands in must not be read."""

    def __init__(self, ffi: Any, *, metadata_only: bool = False) -> None:
        self._ffi, self._metadata_only = ffi, metadata_only
        self._standing_in = 0

    def required(self, tensor: Tensor, name: str) -> Array:
        """View a tensor that the call needs."""
        if not tensor:
            raise ValueError(f"{name} is NULL, expected a tensor")
        return self._view(tensor, name, may_stand_in=True)

    def optional(self, tensor: Tensor, name: str) -> Array | None:
        """View a tensor whose values are read by the computation only; None for NULL."""
        return self._view(tensor, name, may_stand_in=True) if tensor else None

    def vector(self, tensor: Tensor, name: str) -> Array | None:
        """View a small tensor that travels to the device where it is in host memory; None for NULL."""
        if tensor and self._metadata_only and not tensor.data and _is_on_host(tensor):
            return np.zeros(self._extents(tensor, name)[0], _dtype(tensor, name))
        return self._view(tensor, name, may_stand_in=True) if tensor else None

    def numbers(self, tensor: Tensor, name: str) -> Array | None:
        """View a small tensor whose values are looked at where they are in host memory; None for NULL."""
        return self._view(tensor, name, may_stand_in=not _is_on_host(tensor)) if tensor else None

    def _view(self, tensor: Tensor, name: str, *, may_stand_in: bool) -> Array:
        device = None if _is_on_host(tensor) else device_of(tensor, name)
        dtype = _dtype(tensor, name)
        shape, strides = self._extents(tensor, name)
        pointer = int(self._ffi.cast("uintptr_t", tensor.data))
        if not pointer and 0 not in shape:
            if not (may_stand_in and self._metadata_only):
                raise ValueError(f"{name}.data is NULL, expected the address of {math.prod(shape)} elements")
            self._standing_in += 1
            pointer = self._standing_in * NOWHERE
        pointer += tensor.byte_offset
        item = dtype.itemsize
        if math.prod([extent or 1 for extent in shape]) * item >= _END:
            raise ValueError(f"{name} has shape {shape}, expected less than 2**63 bytes")
        own = None
        if strides is not None and 0 not in shape:
            # Of one element along an axis the stride does not count, whatever it is.
            own = tuple([stride * item if extent > 1 else item for stride, extent in zip(strides, shape, strict=True)])
        low, high = _span(pointer, shape, own, item)
        if low < 0 or high >= _END:
            raise ValueError(f"{name} reaches from address {low} to {high}, expected less than 2**63 bytes")
        if device is not None:
            return device.view(pointer, shape, own, dtype)
        if 0 in shape:
            return np.empty(shape, dtype)
        memory = self._ffi.buffer(self._ffi.cast("char *", low), high - low)
        return np.ndarray(shape, dtype, memory, pointer - low, own)

    def _extents(self, tensor: Tensor, name: str) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shape, and strides in elements or None for row-major."""
        ndim = tensor.ndim
        if not 0 <= ndim <= _MOST_DIMS:
            raise ValueError(f"{name}.ndim is {ndim}, expected 0 to {_MOST_DIMS}")
        if ndim and not tensor.shape:
            raise ValueError(f"{name}.shape is NULL, expected {ndim} extents")
        shape = tuple(self._ffi.unpack(tensor.shape, ndim)) if ndim else ()
        if shape and min(shape) < 0:
            raise ValueError(f"{name} has shape {shape}, expected extents >= 0")
        if not tensor.strides or not ndim:
            return shape, None
        return shape, tuple(self._ffi.unpack(tensor.strides, ndim))


def _span(pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, item: int) -> tuple[int, int]:
    """Address of the first byte, and of the one past the last."""
    low = high = pointer
    if strides is None or 0 in shape:
        return low, high + item * math.prod(shape)
    for extent, stride in zip(shape, strides, strict=True):
        if stride < 0:
            low += (extent - 1) * stride
        else:
            high += (extent - 1) * stride
    return low, high + item


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.device_type in _ON_HOST


def device_of(tensor: Tensor, name: str) -> Any:
    """The device that a tensor is on; None for the host."""
    kind, ordinal = tensor.device.device_type, tensor.device.device_id
    if kind in _ON_HOST:
        return None
    if kind in _ON_CUDA:
        return cuda_device(ordinal, name)
    raise ValueError(
        f"{name} has device_type {kind}, expected FLASHCUPY_CPU, FLASHCUPY_CUDA_DEVICE, FLASHCUPY_CUDA_HOST or "
        "FLASHCUPY_CUDA_MANAGED"
    )


@functools.lru_cache(64)
def _dtype_of(code: int, bits: int, lanes: int) -> np.dtype | None:
    if lanes != 1:
        return None
    if code == 4:
        return arrays.bfloat16() if bits == 16 else None
    if code == 6:
        return np.dtype(np.bool_) if bits == 8 else None
    kind = {0: "i", 1: "u", 2: "f", 5: "c"}.get(code)
    try:
        return np.dtype(f"{kind}{bits // 8}") if kind and bits % 8 == 0 else None
    except TypeError:
        return None


def _dtype(tensor: Tensor, name: str) -> np.dtype:
    own = tensor.dtype
    dtype = _dtype_of(own.code, own.bits, own.lanes)
    if dtype is None:
        raise TypeError(
            f"{name} has dtype (code {own.code}, bits {own.bits}, lanes {own.lanes}), expected one of the header's "
            "codes, bits that it has, and one lane"
        )
    return dtype
