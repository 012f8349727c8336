"""What cuda/ asks of a GPU: a protocol that CuPy implements in `cupy_device`, and the test suite's emulator on NumPy.

Nothing else under cuda/ knows which of the two it talks to. An *array* here is whatever the runtime hands out: it has
NumPy's ``shape, strides, dtype, ndim, size, itemsize, nbytes`` and ``flags.c_contiguous``, and its values are out of
reach. All work is asynchronous, in the order of the device's current stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = Any


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What choosing a configuration and naming a cache entry needs to know about a device.

    ``arch`` is what kernels are compiled for ("sm_90"), ``compute_capability`` what the hardware has: they differ where
    the compiler does not know the hardware yet. ``shared_memory`` is the most bytes one thread block may opt in to.
    ``compiler`` and ``driver`` are version strings that key the caches.
    """

    name: str
    compute_capability: tuple[int, int]
    arch: str
    multiprocessors: int
    shared_memory: int
    compiler: str
    driver: str


class Device(Protocol):
    """One GPU."""

    name: str  # "cuda:0": AttentionSpec.device

    @property
    def properties(self) -> DeviceProperties: ...

    def scope(self) -> AbstractContextManager[Any]:
        """Make this the current device, and restore the caller's on exit; the caller's stream of it stays current."""
        ...

    def on_stream(self, stream: int) -> AbstractContextManager[Any]:
        """Make this the current device and `stream` (a cudaStream_t; 0 is the legacy default stream) current on it.

        On exit the thread has its own device, context and stream again.
        """
        ...

    def view(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype) -> Array:
        """View memory that somebody else owns as an array; nothing is looked at. Strides None are row-major."""
        ...

    def free_cached(self) -> None:
        """Give unused memory of the pool back to the driver."""
        ...

    def current_stream(self) -> Hashable:
        """Tell the current stream from others, as the pool does: what was allocated on it goes to its later work."""
        ...

    def is_capturing(self) -> bool:
        """Whether the current stream records a CUDA graph."""
        ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """Row-major memory in stream order, from the pool; its content is undefined."""
        ...

    def is_stream_ordered(self, array: Array) -> bool:
        """Whether memory comes from the driver in stream order, and not from a pool that keeps what it has.

        A graph owns what is allocated so while it is captured, and its free has to be captured as well.
        """
        ...

    def keep_until_done(self, arrays: Iterable[Array]) -> None:
        """Keep those that belong to other libraries until the current stream has passed this point.

        For good while it captures. This is the current device.
        """
        ...

    def keep_elsewhere(self, memory: Any, stream: Hashable) -> None:
        """Keep what was allocated on `stream` until the current one has passed this point, if that is another.

        For good while it captures. This is the current device.
        """
        ...

    def from_host(self, array: np.ndarray) -> Array:
        """Copy a host array to new device memory; the source may change afterwards. Not while capturing."""
        ...

    def overwrite(self, target: Array, content: np.ndarray) -> None:
        """Copy a host array, unchanged until the stream has passed it, over a row-major one of its shape and dtype."""
        ...

    def to_host(self, array: Array) -> np.ndarray:
        """Copy an array to the host; waits for the stream."""
        ...

    def synchronize(self) -> None:
        """Wait for all work on the device; raises what that did wrong. Not while capturing."""
        ...

    def is_kernel_fault(self, error: BaseException) -> bool:
        """Whether a kernel caused the error: it touched what it must not, trapped, never ended, or asked too much."""
        ...

    def compile(self, source: str, entry: str, include: Path) -> bytes:
        """Compile one translation unit with one ``extern "C"`` kernel for `properties.arch`.

        Raises
        ------
        flashcupy.errors.KernelCompileError
            With the compiler's log.
        """
        ...

    def load(self, path: Path, entry: str, shared_bytes: int) -> Any:
        """Load what `compile` returned from a file; `shared_bytes` is the dynamic shared memory of its launches.

        Raises
        ------
        OSError
            If the file is not what this device can load: truncated, foreign, for another architecture.
        """
        ...

    def launch(self, kernel: Any, grid: int, block: int, shared_bytes: int, params: bytes | bytearray) -> None:
        """Launch on the current stream. `params` is the kernel's one argument, a struct passed by value."""
        ...


class Runtime(Protocol):
    """The array library of the devices: how arrays come in and go out."""

    def read(self, x: Any, name: str) -> tuple[Array, str]:
        """View `x` without a copy, and tell the library it came from, as `flashcupy.arrays.read` does for the host."""
        ...

    def write_back(self, array: Array, library: str) -> Any:
        """Hand `array` over as an array of `library`, sharing its memory."""
        ...

    def pointer(self, array: Array) -> int:
        """Address of the first element."""
        ...

    def empty_like(self, model: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        """New memory on the device of `model`, in its memory order where the dims agree."""
        ...

    def device_of(self, array: Array) -> Device: ...

    def device(self, ordinal: int) -> Device: ...

    def count(self) -> int:
        """Devices there are; 0 where there is no driver."""
        ...


_installed: list[Runtime] = []


def use(runtime: Runtime | None) -> None:
    """Install a runtime in place of CuPy's; None goes back to it."""
    _installed[:] = [] if runtime is None else [runtime]


def runtime() -> Runtime:
    """Return the runtime in use; CuPy is imported here, the first time a GPU is asked for."""
    if not _installed:
        from flashcupy.cuda.cupy_device import CupyRuntime

        _installed.append(CupyRuntime())
    return _installed[0]
