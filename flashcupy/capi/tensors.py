"""Tensors of the C interface as arrays: memory of the caller's, viewed where it lies."""

from __future__ import annotations

import functools
import math
from struct import Struct
from typing import Any, NoReturn

import numpy as np

from flashcupy import arrays
from flashcupy.arrays import Array
from flashcupy.capi.places import cuda_device

_ON_HOST = (1, 3)  # memory of the CPU, and page-locked memory
_ON_CUDA = (2, 13)  # memory of a device, and managed memory
_MOST_DIMS = 32
# data, device_type, device_id, ndim, code, bits, lanes, shape, strides, byte_offset: quicker than a field at a time.
_fields = Struct("=QiiiBBHQQQ").unpack
_END = 1 << 63
# Addresses that nobody has, far from each other: of tensors whose metadata is all that counts.
NOWHERE = 1 << 56

Tensor = Any  # a cffi pointer to flashcupy_tensor, perhaps NULL


class TensorReader:
    """Views the tensors of one call. With `metadata_only` data may be NULL; what stands in must not be read."""

    def __init__(self, ffi: Any, *, metadata_only: bool = False) -> None:
        self._ffi, self._metadata_only = ffi, metadata_only
        self._standing_in = 0
        self._place: tuple[int, int] | None = None
        self._device: Any = None

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
            return self._zeros(tensor, name)
        return self._view(tensor, name, may_stand_in=True) if tensor else None

    def _zeros(self, tensor: Tensor, name: str) -> Array:
        fields = _fields(self._ffi.buffer(tensor))
        shape, _ = self._extents(tensor, fields, name)
        code, bits, lanes = fields[4:7]
        dtype = _dtype_of(code, bits, lanes) or _refuse_dtype(code, bits, lanes, name)
        # Strides of 0, so that it takes no memory whatever its shape.
        return np.broadcast_to(np.zeros((), dtype), shape)

    def numbers(self, tensor: Tensor, name: str) -> Array | None:
        """View a small tensor whose values are looked at where they can be; None for NULL."""
        if not tensor:
            return None
        return self._view(tensor, name, may_stand_in=not (_is_on_host(tensor) or _device_values_are_checked()))

    def _view(self, tensor: Tensor, name: str, *, may_stand_in: bool) -> Array:
        fields = _fields(self._ffi.buffer(tensor))
        pointer, kind, ordinal, _, code, bits, lanes, _, _, offset = fields
        if (kind, ordinal) != self._place:  # most tensors of a call are where the one before was
            self._device, self._place = _device(kind, ordinal, name), (kind, ordinal)
        dtype = _dtype_of(code, bits, lanes) or _refuse_dtype(code, bits, lanes, name)
        shape, strides = self._extents(tensor, fields, name)
        n, item = math.prod(shape), dtype.itemsize
        if not pointer and n:
            if not (may_stand_in and self._metadata_only):
                raise ValueError(f"{name}.data is NULL, expected the address of {n} elements")
            self._standing_in += 1
            pointer = self._standing_in * NOWHERE
        pointer += offset
        low, high, own = pointer, pointer + n * item, None
        if strides is not None and n:
            # Of one element along an axis the stride does not count, whatever it is.
            own = tuple([stride * item if extent > 1 else item for stride, extent in zip(strides, shape, strict=True)])
            low, high = _span(pointer, shape, own, item)
        # Extents besides one of 0, and those of broadcast axes, count all the same.
        if low < 0 or high >= _END or (n or math.prod([extent or 1 for extent in shape])) * item >= _END:
            raise ValueError(f"{name} has shape {shape} and strides {strides}, expected less than 2**63 bytes")
        if self._device is not None:
            return self._device.view(pointer, shape, own, dtype)
        if not n:
            return np.empty(shape, dtype)
        memory = self._ffi.buffer(self._ffi.cast("char *", low), high - low)
        return np.ndarray(shape, dtype, memory, pointer - low, own)

    def _extents(
        self, tensor: Tensor, fields: tuple[int, ...], name: str
    ) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Shape, and strides in elements or None for row-major."""
        _, _, _, ndim, _, _, _, shape_at, strides_at, _ = fields
        if not 0 <= ndim <= _MOST_DIMS:
            raise ValueError(f"{name}.ndim is {ndim}, expected 0 to {_MOST_DIMS}")
        if not ndim:
            return (), None
        if not shape_at:
            raise ValueError(f"{name}.shape is NULL, expected {ndim} extents")
        shape = tuple(self._ffi.unpack(tensor.shape, ndim))
        if min(shape) < 0:
            raise ValueError(f"{name} has shape {shape}, expected extents >= 0")
        return shape, tuple(self._ffi.unpack(tensor.strides, ndim)) if strides_at else None


def _span(pointer: int, shape: tuple[int, ...], strides: tuple[int, ...], item: int) -> tuple[int, int]:
    """Address of the first byte, and of the one past the last."""
    low = high = pointer
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
    return _device(tensor.device.device_type, tensor.device.device_id, name)


def _device(kind: int, ordinal: int, name: str) -> Any:
    if kind in _ON_HOST:
        return None
    if kind in _ON_CUDA:
        return cuda_device(ordinal, name)
    raise ValueError(
        f"{name} has device_type {kind}, expected FLASHCUPY_CPU, FLASHCUPY_CUDA_DEVICE, FLASHCUPY_CUDA_HOST or "
        "FLASHCUPY_CUDA_MANAGED"
    )


def _device_values_are_checked() -> bool:
    from flashcupy.cuda.verdicts import check_mode

    return check_mode() == "values"


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


def _refuse_dtype(code: int, bits: int, lanes: int, name: str) -> NoReturn:
    raise TypeError(
        f"{name} has dtype (code {code}, bits {bits}, lanes {lanes}), expected one of the header's codes, bits that it "
        "has, and one lane"
    )
