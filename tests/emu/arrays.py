"""Arrays of the emulated device: NumPy memory behind an interface that keeps values out of reach, as a GPU does."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, NoReturn

import numpy as np

from flashcupy.cuda.device import Device


class EmuArray:
    """Memory of `device`, with CuPy's manners: metadata and views are free, values come only by `get`.

    ``_host`` is the NumPy view that the emulator computes on. Any strides will do: negative, 0, unaligned.
    """

    __slots__ = ("__weakref__", "_host", "device")
    __array_ufunc__ = None

    def __init__(self, host: np.ndarray, device: Device) -> None:
        self._host, self.device = host, device

    @property
    def shape(self) -> tuple[int, ...]:
        return self._host.shape

    @property
    def strides(self) -> tuple[int, ...]:
        return self._host.strides

    @property
    def dtype(self) -> np.dtype:
        return self._host.dtype

    @property
    def ndim(self) -> int:
        return self._host.ndim

    @property
    def size(self) -> int:
        return self._host.size

    @property
    def itemsize(self) -> int:
        return self._host.itemsize

    @property
    def nbytes(self) -> int:
        return self._host.nbytes

    @property
    def flags(self) -> Any:
        return self._host.flags

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        own = self._host.__array_interface__
        return {
            **{key: own[key] for key in ("shape", "typestr", "strides")},
            "data": (own["data"][0], False),
            "version": 3,
        }

    @property
    def mT(self) -> EmuArray:  # noqa: N802  (the array API's name)
        return EmuArray(self._host.mT, self.device)

    def get(self) -> np.ndarray:
        """Copy to the host, in row-major order."""
        return np.array(self._host, order="C", copy=True)

    def reshape(self, *shape: int) -> EmuArray:
        return EmuArray(np.reshape(self._host, shape, copy=False), self.device)

    def swapaxes(self, a: int, b: int) -> EmuArray:
        return EmuArray(self._host.swapaxes(a, b), self.device)

    def transpose(self, *axes: int) -> EmuArray:
        return EmuArray(self._host.transpose(*axes), self.device)

    def __getitem__(self, index: Any) -> EmuArray:
        """Return a view, of no dims where every axis got an int."""
        entries = index if isinstance(index, tuple) else (index,)
        if not all(entry is None or isinstance(entry, (int, slice, EllipsisType)) for entry in entries):
            raise IndexError(f"{index!r} would copy, expected ints, slices, None and ...")
        return EmuArray(self._host[entries if ... in entries else (*entries, ...)], self.device)

    def __len__(self) -> int:
        return len(self._host)

    def __repr__(self) -> str:
        return f"EmuArray({self.shape}, {self.dtype}, {self.device.name})"

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    # What would read a value. Identity is all that is left of equality, so that these may be kept in sets.
    __bool__ = __int__ = __float__ = __index__ = __iter__ = __array__


class EmuRuntime:
    """`flashcupy.cuda.device.Runtime` of emulated devices; their arrays are its only library, "emu".

    A device offers, beyond the protocol, ``register(host)``: told of every array whose address is handed out, so that
    kernels are held to the memory of those arrays.
    """

    def __init__(self, *devices: Any) -> None:
        self._devices = devices

    def read(self, x: Any, name: str) -> tuple[EmuArray, str]:
        if not isinstance(x, EmuArray):
            raise TypeError(f"{name} is a {type(x).__name__}, expected an array of the emulated device")
        return x, "emu"

    def write_back(self, array: EmuArray, library: str) -> EmuArray:
        assert library == "emu", library
        return array

    def pointer(self, array: EmuArray) -> int:
        array.device.register(array._host)
        return array._host.__array_interface__["data"][0]

    def empty_like(self, model: EmuArray, shape: tuple[int, ...], dtype: np.dtype) -> EmuArray:
        if model.ndim != len(shape) or model.flags.c_contiguous:
            return model.device.empty(shape, dtype)
        outermost_first = sorted(range(model.ndim), key=lambda axis: -abs(model.strides[axis]))
        packed = model.device.empty(tuple(shape[axis] for axis in outermost_first), dtype)
        return packed.transpose(*np.argsort(outermost_first))

    def device_of(self, array: EmuArray) -> Device:
        return array.device

    def device(self, ordinal: int) -> Device:
        return self._devices[ordinal]

    def count(self) -> int:
        return len(self._devices)
