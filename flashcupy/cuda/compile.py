"""From a configuration to a kernel to launch: compiled once, kept on disk, loaded once per device and process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flashcupy.cuda import cache
from flashcupy.cuda.cache import Binary
from flashcupy.cuda.device import Device
from flashcupy.cuda.environment import LOG, dump_dir, lineinfo, show_log
from flashcupy.cuda.sources import kernels_dir, sources_digest
from flashcupy.errors import KernelCompileError

# (translation unit, entry, include folder) -> binary: `Device.compile`, or the same without a device.
Compile = Callable[[str, str, Path], bytes]

_ELF = b"\x7fELF"


class KernelConfig(Protocol):
    """What compiling asks of a configuration; equal ones, by ``==`` and hash, are one kernel."""

    @property
    def name(self) -> str:
        """Names the ``extern "C"`` entry, and everything compiled in."""
        ...

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> int: ...

    def translation_unit(self) -> str: ...


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel on one device; `handle` is what `Device.launch` takes, `digest` that of the binary."""

    name: str
    threads: int
    shared_bytes: int
    handle: Any
    digest: str
    path: Path


@dataclass(slots=True)
class _Slot:
    """One kernel of one device: loaded, or known not to compile as long as the sources stay as they are."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    kernel: LoadedKernel | None = None
    failure: tuple[str, KernelCompileError] | None = None


_slots: dict[tuple[Device, KernelConfig], _Slot] = {}
_slots_lock = threading.Lock()


def load_kernel(device: Device, config: KernelConfig) -> LoadedKernel:
    """Return the kernel of a configuration, ready to launch.

    The first call of a process loads it from disk, or compiles it; two threads that ask at once wait for one answer.
    Damaged and foreign files on disk never raise: they are compiled anew, once.

    Raises
    ------
    KernelCompileError
        If the compiler refuses the unit, or the driver what the compiler made. It is remembered, and raised without
        another try, until a kernel source changes.
    OSError
        If neither the cache folder nor the temporary folder takes the binary, or ``FLASHCUPY_DUMP`` names a folder
        that cannot be written to.
    RuntimeError
        What the device raises for reasons that are not the kernel's: out of memory, a context that an earlier launch
        has broken.
    """
    slot = _slots.get((device, config))
    if slot is None:
        with _slots_lock:
            slot = _slots.setdefault((device, config), _Slot())
    if slot.kernel is not None:
        return slot.kernel
    with slot.lock:
        if slot.kernel is None:
            _refuse_again(slot)
            try:
                slot.kernel = _load(device, config)
            except KernelCompileError as error:
                slot.failure = sources_digest(), error
                raise
        return slot.kernel


def loaded_kernel(device: Device, config: KernelConfig) -> LoadedKernel | None:
    """Return the kernel if this process has it loaded: what may be used while a CUDA graph is captured."""
    slot = _slots.get((device, config))
    return None if slot is None else slot.kernel


def is_compiled(device: Device, config: KernelConfig) -> bool:
    """Whether `load_kernel` would find the kernel, in memory or on disk."""
    return loaded_kernel(device, config) is not None or _unit_for(device, config).find() is not None


@dataclass(frozen=True, slots=True)
class Unit:
    """One configuration for one architecture and compiler, as the cache knows it."""

    name: str
    source: str
    arch: str
    key: str

    def find(self) -> Binary | None:
        """Look the binary up on disk."""
        binary = cache.find(self.name, self.key)
        if binary is not None:
            self._dump(binary)
        return binary

    def make(self, compile_unit: Compile) -> Binary:
        """Compile, and keep the binary on disk.

        Raises
        ------
        KernelCompileError
            With the place where the source was kept.
        OSError
            As `load_kernel` does.
        """
        start = time.perf_counter()
        try:
            content = compile_unit(self.source, self.name, kernels_dir())
        except KernelCompileError as error:
            raise self.failed(error.options, error.log) from None
        LOG.debug("compiled %s for %s in %.0f ms", self.name, self.arch, 1e3 * (time.perf_counter() - start))
        binary = cache.store(self.name, self.key, content)
        self._dump(binary)
        return binary

    def failed(self, options: tuple[str, ...], log: str) -> KernelCompileError:
        """Keep the source and name its place in the error."""
        kept = cache.keep_source(self.name, self.key, self.source)
        return KernelCompileError(self.name, options, log, None if kept is None else str(kept))

    def _dump(self, binary: Binary) -> None:
        folder = dump_dir()
        if folder is not None:
            content = binary.path.read_bytes()
            suffix = ".cubin" if content.startswith(_ELF) else ".ptx"
            cache.write(folder / f"{self.name}.cu", self.source.encode())
            cache.write(folder / f"{self.name}{suffix}", content)


def unit_of(config: KernelConfig, arch: str, compiler: str) -> Unit:
    """Describe what is compiled for a configuration; `compiler` is its version, which keys the cache."""
    source = config.translation_unit()
    flags = ("-lineinfo",) if lineinfo() else ()
    key = cache.cache_key(
        sources=sources_digest(), unit=source, entry=config.name, compiler=compiler, arch=arch, flags=flags
    )
    return Unit(config.name, source, arch, key)


def _unit_for(device: Device, config: KernelConfig) -> Unit:
    return unit_of(config, device.properties.arch, device.properties.compiler)


def _refuse_again(slot: _Slot) -> None:
    if slot.failure is not None:
        digest, error = slot.failure
        if digest == sources_digest():
            raise error.with_traceback(None)
        slot.failure = None


def _load(device: Device, config: KernelConfig) -> LoadedKernel:
    show_log()
    unit = _unit_for(device, config)
    binary = unit.find()
    if binary is not None:
        try:
            return _loaded(device, config, binary)
        except OSError as error:
            LOG.debug("compiling %s anew: %s", config.name, error)
            cache.discard(binary)
    binary = unit.make(device.compile)
    try:
        return _loaded(device, config, binary)
    except OSError as error:
        properties = device.properties
        log = f"{properties.compiler} compiles it, but driver {properties.driver} does not load the result: {error}"
        raise unit.failed((f"-arch={unit.arch}",), log) from error


def _loaded(device: Device, config: KernelConfig, binary: Binary) -> LoadedKernel:
    start = time.perf_counter()
    handle = device.load(binary.path, config.name, config.shared_bytes)
    LOG.debug("loaded %s from %s in %.1f ms", config.name, binary.path, 1e3 * (time.perf_counter() - start))
    return LoadedKernel(config.name, config.threads, config.shared_bytes, handle, binary.digest, binary.path)
