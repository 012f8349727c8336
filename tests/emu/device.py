"""`EmuDevice`: the device protocol on a CPU, with every mistake the emulator can see raised as `EmuError`."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import tempfile
import weakref
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from emu import banks, build, places
from emu.arrays import EmuArray
from flashcupy.cuda.device import DeviceProperties

_ORDERS = ("forward", "reverse", "random")
_COPIES = ("eager", "lazy")
# The most shared memory a block may opt in to, in KiB, by compute capability.
SHARED = {(7, 0): 96, (7, 5): 64, (8, 0): 163, (8, 6): 99, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
_GUARD = 4096  # bytes on both sides of fresh memory that no kernel may touch
_ALIGNMENT = 256


class EmuError(RuntimeError):
    """What a launch did wrong; `kind` is its first word.

    race, bounds, uninitialised, misaligned, deadlock, divergence, limits, undefined; of tests/ptx also unknown.
    """

    def __init__(self, report: str) -> None:
        super().__init__(report)
        self.kind = report.partition(":")[0]


@dataclass(frozen=True)
class Settings:
    """How a device runs its launches. None takes turns from launch to launch.

    Asynchronous copies are "eager" (the bytes arrive when the copy is issued) or "lazy" (at the wait).
    """

    lane_order: str | None = None
    block_order: str | None = None
    copies: str | None = None
    seed: int = 0
    detect_races: bool = True
    count_bank_conflicts: bool = False


class _Launch(ctypes.Structure):
    """`Launch` in runtime/machine.hpp."""

    _fields_ = (
        ("entry", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("image_begin", ctypes.c_uint64),
        ("image_end", ctypes.c_uint64),
        ("params", ctypes.c_void_p),
        *((name, ctypes.c_uint32) for name in ("params_bytes", "grid", "block", "shared_bytes")),
        *((name, ctypes.c_uint32) for name in ("lane_order", "block_order", "detect_races")),
        *((name, ctypes.c_uint32) for name in ("lazy_copies", "count_banks", "unused")),
        *((name, ctypes.c_uint64) for name in ("seed", "accesses", "switches")),
        ("report", ctypes.c_void_p),
        ("report_bytes", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class _Kernel:
    name: str
    path: Path
    library: ctypes.CDLL
    entry: int
    image: tuple[int, int]
    params_bytes: int
    most_threads: int
    shared_bytes: int


@cache
def runtime() -> ctypes.CDLL:
    """Load the runtime library, one for all devices."""
    library = ctypes.CDLL(str(build.runtime_library()))
    library.emu_register.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_char_p)
    library.emu_register.restype = ctypes.c_void_p
    library.emu_unregister.argtypes = (ctypes.c_void_p,)
    library.emu_unregister.restype = None
    library.emu_launch.argtypes = (ctypes.POINTER(_Launch),)
    library.emu_launch.restype = None
    return library


class EmuDevice:
    """A GPU of some compute capability as far as choosing a kernel goes, and a CPU otherwise.

    Kernels may touch the memory of arrays made by `empty` and `from_host`, and what `register` was told of. Launches
    are done when `launch` returns. ``capturing`` plays a stream capture, and ``stream`` is the current one: set them.
    """

    def __init__(
        self, ordinal: int = 0, settings: Settings | None = None, compute_capability: tuple[int, int] = (9, 0)
    ) -> None:
        self.name = f"cuda:{ordinal}"
        self.compute_capability = compute_capability
        self.settings = settings or Settings()
        self.capturing = False
        self.launches = 0
        self.streams: list[int] = []
        self.stream = 0
        self.accesses = self.switches = 0  # of the last launch
        self.bank_conflicts: list[banks.BankConflicts] = []  # of the last launch that counted them
        self._registered: dict[int, Any] = {}

    @cached_property
    def properties(self) -> DeviceProperties:
        return DeviceProperties(
            name="emulated",
            compute_capability=self.compute_capability,
            arch="emu",  # one for all: the CPU runs the same binaries
            multiprocessors=132,
            shared_memory=SHARED[self.compute_capability] << 10,
            compiler=build.compiler_version(),
            driver="emulated",
        )

    @contextlib.contextmanager
    def using(self, **settings: Any) -> Iterator[None]:
        """Run with other settings: ``with device.using(lane_order="reverse"): ...``."""
        before = self.settings
        self.settings = replace(before, **settings)
        try:
            yield
        finally:
            self.settings = before

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext(self)

    @contextlib.contextmanager
    def on_stream(self, stream: int) -> Iterator[None]:
        """There are no streams: launches are done in the order that they are made. `streams` notes who asked."""
        self.streams.append(stream)
        yield

    def view(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype) -> EmuArray:
        like = np.dtype(f"u{dtype.itemsize}") if dtype.isbuiltin != 1 else dtype  # NumPy knows no name for bfloat16
        interface = {"data": (pointer, False), "shape": shape, "strides": strides, "typestr": like.str, "version": 3}
        memory = np.asarray(SimpleNamespace(__array_interface__=interface)) if pointer else np.empty(shape, like)
        return EmuArray(memory.view(dtype), self)

    def free_cached(self) -> None:
        """Nothing is cached."""

    def current_stream(self) -> Hashable:
        return self.stream

    def is_capturing(self) -> bool:
        return self.capturing

    def empty(self, shape: tuple[int, ...], dtype: np.dtype, off: int = 0) -> EmuArray:
        """Fresh memory, `off` bytes beyond an address as a GPU's allocator gives them."""
        dtype = np.dtype(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        memory = np.full(off + nbytes + 2 * _GUARD + _ALIGNMENT, 0xFF, np.uint8)
        start = _GUARD + -(memory.ctypes.data + _GUARD) % _ALIGNMENT + off
        host = memory[start : start + nbytes].view(dtype).reshape(shape)
        # Known as the array alone, not with its guards.
        self._know(memory, memory.ctypes.data + start, nbytes, _label(host))
        return EmuArray(host, self)

    def is_stream_ordered(self, array: EmuArray) -> bool:
        return False

    def keep_until_done(self, arrays: Iterable[EmuArray]) -> None:
        """Launches are done when they return."""

    def keep_elsewhere(self, memory: Any, stream: Hashable) -> None:
        """Launches are done when they return."""

    def from_host(self, array: np.ndarray) -> EmuArray:
        if self.capturing:
            raise EmuError("limits: a copy from the host while the stream is capturing")
        copy = self.empty(array.shape, array.dtype)
        copy._host[...] = array
        return copy

    def overwrite(self, target: EmuArray, content: np.ndarray) -> None:
        if self.capturing:
            raise EmuError("limits: a copy from the host while the stream is capturing")
        assert (target.shape, target.dtype) == (content.shape, content.dtype)
        assert target.flags.c_contiguous
        target._host[...] = content

    def to_host(self, array: EmuArray) -> np.ndarray:
        return array.get()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def is_kernel_fault(self, error: BaseException) -> bool:
        return isinstance(error, EmuError)

    def register(self, host: np.ndarray) -> None:
        """Let kernels touch the memory that `host` is a view of, for as long as that lives."""
        root = host
        while isinstance(root.base, np.ndarray):
            root = root.base
        if id(root) not in self._registered:
            begin, end = np.lib.array_utils.byte_bounds(root)
            self._know(root, begin, end - begin if root.size else 0, _label(root))

    def _know(self, root: np.ndarray, begin: int, nbytes: int, label: str) -> None:
        region = runtime().emu_register(begin, nbytes, root.flags.writeable, label.encode())
        finalizer = weakref.finalize(root, _forget, self._registered, id(root), region)
        finalizer.atexit = False
        self._registered[id(root)] = finalizer

    def compile(self, source: str, entry: str, include: Path) -> bytes:
        return build.compile_kernel(source, entry, include)

    def load(self, path: Path, entry: str, shared_bytes: int) -> _Kernel:
        content = Path(path).read_bytes()
        build.check_kernel(content)
        runtime()  # which the kernel asks for by name
        # A private copy: the loader knows files by name, and one that shrinks under a mapping kills the process.
        copy = Path(_loaded_folder().name, f"{next(_numbers)}_{entry[:100]}.so")
        copy.write_bytes(content)
        library = ctypes.CDLL(str(copy))
        if not hasattr(library, entry):
            raise OSError(f"{path} has no kernel {entry}")
        image = (ctypes.c_uint64 * 2).in_dll(library, "emu_image")
        return _Kernel(
            name=entry,
            path=copy,
            library=library,
            entry=ctypes.cast(library.emu_entry, ctypes.c_void_p).value or 0,
            image=(image[0], image[1]),
            params_bytes=ctypes.c_uint32.in_dll(library, "emu_params_bytes").value,
            most_threads=ctypes.c_uint32.in_dll(library, "emu_most_threads").value,
            shared_bytes=shared_bytes,
        )

    def launch(self, kernel: _Kernel, grid: int, block: int, shared_bytes: int, params: bytes | bytearray) -> None:
        self._check_limits(kernel, grid, block, shared_bytes, len(params))
        turn, self.launches = self.launches, self.launches + 1
        settings = self.settings
        lane_order, block_order = settings.lane_order, settings.block_order
        report = ctypes.create_string_buffer(8192)
        given = ctypes.create_string_buffer(bytes(params), len(params))
        request = _Launch(
            entry=kernel.entry,
            name=kernel.name.encode(),
            image_begin=kernel.image[0],
            image_end=kernel.image[1],
            params=ctypes.addressof(given),
            params_bytes=len(params),
            grid=grid,
            block=block,
            shared_bytes=shared_bytes,
            lane_order=turn % 3 if lane_order is None else _ORDERS.index(lane_order),
            block_order=turn // 3 % 3 if block_order is None else _ORDERS.index(block_order),
            detect_races=settings.detect_races,
            lazy_copies=turn % 2 if settings.copies is None else _COPIES.index(settings.copies),
            count_banks=settings.count_bank_conflicts,
            seed=settings.seed * 1_000_003 + turn,
            report=ctypes.addressof(report),
            report_bytes=len(report),
        )
        runtime().emu_launch(ctypes.byref(request))
        self.accesses, self.switches = request.accesses, request.switches
        if settings.count_bank_conflicts:
            self.bank_conflicts = banks.bank_conflicts(runtime(), kernel.path)
        if report.value:
            raise EmuError(places.with_places(report.value.decode(errors="replace"), kernel.path))

    def _check_limits(self, kernel: _Kernel, grid: int, block: int, shared_bytes: int, params_bytes: int) -> None:
        for what, value, least, most in (
            ("grid", grid, 1, 2**31 - 1),
            ("block", block, 1, min(1024, kernel.most_threads)),
            ("shared_bytes", shared_bytes, 0, min(self.properties.shared_memory, kernel.shared_bytes)),
            ("the size of params", params_bytes, kernel.params_bytes, min(4096, kernel.params_bytes)),
        ):
            if not least <= value <= most:
                raise EmuError(f"limits: {what} is {value}, expected {least} to {most}; kernel {kernel.name}")


_numbers = itertools.count()


@cache
def _loaded_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="flashcupy-emu-")


def _forget(registered: dict[int, Any], key: int, region: int) -> None:
    del registered[key]
    runtime().emu_unregister(region)


def _label(host: np.ndarray) -> str:
    return f"an array {host.dtype}{list(host.shape)}"
