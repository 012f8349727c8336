"""Where a call of the C interface runs: on the host, or on a device, the caller's stream, and in his workspace."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from flashcupy import arrays
from flashcupy.arrays import HOST, Array
from flashcupy.capi.status import NoDeviceError
from flashcupy.spec import AttentionProblem

_devices: dict[tuple[Any, int], Any] = {}


def cuda_device(ordinal: int, name: str) -> Any:
    """The CUDA device of a number, which `name` gave; the driver is asked once.

    Raises
    ------
    ValueError
        If there is none of that number.
    NoDeviceError
        If there is none at all.
    """
    runtime = arrays.runtime()
    known = _devices.get((runtime, ordinal))
    if known is None:
        count = runtime.count()
        if not count:
            raise NoDeviceError(f"{name} is on a CUDA device, and there is none, or no driver that CuPy can use")
        if not 0 <= ordinal < count:
            raise ValueError(
                f"{name} has device_id {ordinal}, expected 0 to {count - 1}: there are {count} CUDA devices"
            )
        known = _devices[runtime, ordinal] = runtime.device(ordinal)
    return known


def used_devices() -> list[Any]:
    """All devices that tensors have been on, of the runtime in use."""
    return [device for (runtime, _), device in _devices.items() if runtime is arrays.runtime()] if _devices else []


def on_stream(device: Any, stream: int, what: str = "tensors") -> AbstractContextManager[Any]:
    """Run on a device and a stream of it; `device` is None for the host, which has none."""
    if device is not None:
        return device.on_stream(stream)
    if stream:
        raise ValueError(f"stream is {stream:#x}, expected NULL for {what} in host memory")
    return nullcontext()


class Workspace:
    """The caller's memory for a call's temporaries, or none."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self._pointer, self._nbytes = pointer, nbytes

    @classmethod
    def of(cls, pointer: int, nbytes: int, problem: AttentionProblem) -> Workspace:
        """Check what the options say.

        Raises
        ------
        ValueError
            For memory that no call on these arrays can use.
        """
        if not pointer:
            if nbytes:
                raise ValueError(f"workspace is NULL and workspace_size {nbytes}, expected both or neither")
            return cls(0, 0)
        if problem.spec.device == HOST:
            raise ValueError("workspace is given, expected NULL for tensors in host memory")
        from flashcupy.cuda.workspace import ALIGNMENT

        if pointer % ALIGNMENT:
            raise ValueError(f"workspace is at address {pointer:#x}, expected one that is a multiple of {ALIGNMENT}")
        return cls(pointer, nbytes)

    def lse(self, problem: AttentionProblem) -> Array | None:
        """Memory for an lse that the caller does not want, at the beginning; None where the library allocates."""
        if not self._pointer:
            return None
        needed = lse_bytes(problem)
        if needed > self._nbytes:
            raise ValueError(f"workspace has {self._nbytes} bytes, expected more than {needed}")
        array = lse_at(self._pointer, problem)
        self._pointer, self._nbytes = self._pointer + needed, self._nbytes - needed
        return array

    def serving(self) -> AbstractContextManager[None]:
        """Let the call's temporaries come from here."""
        if not self._pointer:
            return nullcontext()
        from flashcupy.cuda.workspace import given

        return given(self._pointer, self._nbytes)


def lse_at(pointer: int, problem: AttentionProblem) -> Array:
    """An array for lse at an address on the problem's device."""
    device = arrays.runtime().device_of(problem.q)
    return device.view(pointer, problem.spec.lse_shape, None, arrays.accumulator(problem.spec.dtype))


def lse_bytes(problem: AttentionProblem) -> int:
    """What `Workspace.lse` takes."""
    item = np.dtype(arrays.accumulator(problem.spec.dtype)).itemsize
    return -(-math.prod(problem.spec.lse_shape) * item // 256) * 256
