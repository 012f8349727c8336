"""GPUs through CuPy: the one file that imports it.

CuPy brings memory, streams, loading, launching and a wrapper of NVRTC; no array arithmetic of it is used.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flashcupy.arrays import bfloat16
from flashcupy.cuda import nvrtc
from flashcupy.cuda.borrowed import Borrowed
from flashcupy.cuda.device import Array, DeviceProperties
from flashcupy.cuda.driver import dotted, driver_version
from flashcupy.cuda.environment import LOG, lineinfo
from flashcupy.cuda.forks import note_use, require_own_cuda
from flashcupy.cuda.streams import CudaStream, own_context, thread_token
from flashcupy.foreign import require_plain_tensor

_OLDEST_CUPY = (14, 2)
_STATIC_LIMIT = 48 << 10  # bytes of shared memory that a launch gets without opting in

# CUresult codes that mean the file and not the state of the device: invalid image, no binary for this GPU, invalid PTX,
# PTX newer than the driver, no JIT compiler, none permitted, invalid source, file not found, symbol not found.
_BAD_FILE = frozenset({200, 209, 218, 221, 222, 223, 300, 301, 500})
# Those that a kernel causes, the same in CUresult and cudaError_t: illegal address, timeout, assertion, stack error,
# illegal instruction, misaligned address, invalid address space, invalid program counter, launch failure, cooperative
# launch too large.
_KERNEL_FAULTS = frozenset({700, 702, 710, 714, 715, 716, 717, 718, 719, 720})


@functools.cache
def _cupy() -> Any:
    """Import CuPy.

    Raises
    ------
    ImportError
        Naming the extra that brings it.
    """
    try:
        import cupy
    except ImportError as error:
        raise ImportError(
            "arrays on a GPU need CuPy, which cannot be imported: pip install 'flashcupy[cuda13]', or "
            "'flashcupy[cuda12]' where the driver is for CUDA 12"
        ) from error
    if tuple(map(int, re.findall(r"\d+", cupy.__version__)[:2])) < _OLDEST_CUPY:
        raise ImportError(f"CuPy {cupy.__version__} is installed, expected {'.'.join(map(str, _OLDEST_CUPY))} or newer")
    return cupy


@functools.cache
def _nvrtc() -> tuple[Any, str]:
    """CuPy's wrapper of NVRTC, and the version.

    Raises
    ------
    ImportError
        If the library is missing, naming the package that brings it.
    """
    cuda = _cupy().cuda
    try:
        major, minor = cuda.nvrtc.getVersion()
    except (ImportError, RuntimeError) as error:  # CuPy looks for the library at the first call
        package = "nvidia-cuda-nvrtc-cu12" if cuda.runtime.runtimeGetVersion() < 13000 else "nvidia-cuda-nvrtc"
        raise ImportError(f"kernels are compiled by NVRTC, which CuPy cannot load: pip install {package}") from error
    return cuda.nvrtc, f"NVRTC {major}.{minor}"


def cuda_errors() -> tuple[type[BaseException], ...]:
    """What CuPy raises for errors of the runtime and of the driver; their `status` is the code."""
    cuda = _cupy().cuda
    return cuda.runtime.CUDARuntimeError, cuda.driver.CUDADriverError


def compiler_version() -> str:
    """Name NVRTC and its version; needs no GPU.

    Raises
    ------
    ImportError
        If CuPy or NVRTC is missing.
    """
    return _nvrtc()[1]


def known_archs() -> tuple[int, ...]:
    """What NVRTC compiles for, as 10 * major + minor; needs no GPU. Raises as `compiler_version` does."""
    return tuple(_nvrtc()[0].getSupportedArchs())


def nvrtc_compile(source: str, entry: str, arch: str, include: Path) -> tuple[bytes, nvrtc.Usage | None]:
    """Compile one translation unit, without a GPU; returns the binary and what the kernel uses.

    Raises
    ------
    KernelCompileError
        If NVRTC refuses the unit or the architecture.
    ImportError
        As `compiler_version` does.
    """
    options = nvrtc.options_for(arch, include, lineinfo=lineinfo())
    binary, log = nvrtc.compile_unit(_nvrtc()[0], source, entry, options)
    used = nvrtc.usage(log)
    LOG.debug("%s for %s: %s", entry, arch, used or "registers are assigned when it is loaded")
    return binary, used


@functools.cache
def _per_thread_default() -> bool:
    """Whether CuPy takes 0 for the thread's own default stream, and not for the legacy one."""
    from cupy_backends.cuda.stream import get_default_stream_ptr

    return get_default_stream_ptr() != _LEGACY_STREAM


_LEGACY_STREAM, _PER_THREAD_STREAM = 1, 2  # cudaStreamLegacy, cudaStreamPerThread
_CAPTURE_IMPLICIT = 906  # cudaErrorStreamCaptureImplicit
_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver


class CupyDevice:
    """One GPU; implements `flashcupy.cuda.device.Device`."""

    borrows = False  # whether arrays of other libraries have come, of any device: else nothing is looked at

    def __init__(self, ordinal: int) -> None:
        self.ordinal, self.name = ordinal, f"cuda:{ordinal}"
        self._borrowed = Borrowed()

    @functools.cached_property
    def properties(self) -> DeviceProperties:
        """Asked of the driver once.

        Raises
        ------
        RuntimeError
            If there is no such device, or no driver that CuPy can use.
        ImportError
            If NVRTC is missing.
        UnsupportedError
            If the GPU is too old.
        """
        runtime = _cupy().cuda.runtime
        driver = runtime.driverGetVersion()
        try:
            found = runtime.getDeviceProperties(self.ordinal)
        except runtime.CUDARuntimeError as error:
            who = "no CUDA driver is installed" if driver == 0 else f"the driver is for CUDA {dotted(driver)}"
            needs = f"CuPy is for CUDA {dotted(runtime.runtimeGetVersion())}"
            raise RuntimeError(f"{self.name} cannot be used: {who}, {needs} ({error})") from None
        note_use()
        capability = (found["major"], found["minor"])
        return DeviceProperties(
            name=found["name"].decode(),
            compute_capability=capability,
            arch=nvrtc.arch_for(capability, known_archs(), compiler_version()),
            multiprocessors=found["multiProcessorCount"],
            shared_memory=found["sharedMemPerBlockOptin"],
            compiler=compiler_version(),
            driver=driver_version(driver),
        )

    def scope(self) -> AbstractContextManager[Any]:
        return _cupy().cuda.Device(self.ordinal)

    @contextmanager
    def on_stream(self, stream: int) -> Iterator[None]:
        cuda = _cupy().cuda
        with own_context(cuda.driver), self.scope():
            # CuPy does not where this is the device already: another context of it, which somebody pushed, would stay.
            cuda.runtime.setDevice(self.ordinal)
            with self._stream(stream):
                yield

    def _stream(self, stream: int) -> Any:
        cuda = _cupy().cuda
        if not stream and not _per_thread_default():
            return cuda.Stream.null
        return cuda.Stream.from_external(CudaStream(stream or _LEGACY_STREAM))

    def view(self, pointer: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype) -> Array:
        cuda = _cupy().cuda
        memory = cuda.UnownedMemory(pointer, 0, None, self.ordinal)
        return _cupy().ndarray(shape, dtype, cuda.MemoryPointer(memory, 0), strides)

    def free_cached(self) -> None:
        with self.scope():
            _cupy().get_default_memory_pool().free_all_blocks()

    def current_stream(self) -> Hashable:
        stream = _cupy().cuda.get_current_stream(self.ordinal).ptr
        return stream if stream not in (0, _PER_THREAD_STREAM) or not _per_thread_default() else thread_token()

    def is_capturing(self) -> bool:
        cupy = _cupy()
        stream = cupy.cuda.get_current_stream(self.ordinal)
        if _per_thread_default() and stream.ptr == 0:  # where launches do not go then
            stream = cupy.cuda.Stream.ptds
        try:
            return stream.is_capturing()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            # The legacy stream may not even be asked while a blocking stream captures; it does not capture itself.
            if error.status == _CAPTURE_IMPLICIT:
                return False
            raise

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        with self.scope():
            return _cupy().empty(shape, dtype)

    def is_stream_ordered(self, array: Array) -> bool:
        return isinstance(array.data.mem, _cupy().cuda.MemoryAsync)

    def keep_until_done(self, arrays: Iterable[Array]) -> None:
        if CupyDevice.borrows:
            self._keep([array.data.mem for array in arrays if _is_borrowed(array.data.mem)])
        elif self._borrowed:
            self._keep([])

    def keep_elsewhere(self, memory: Any, stream: Hashable) -> None:
        if stream != self.current_stream():
            self._keep([memory])

    def _keep(self, memory: list[Any]) -> None:
        if not memory and not self._borrowed:
            return
        if self.is_capturing():  # which asking for an event may break, and recording one would not do for replays
            self._borrowed.keep_for_good(memory)
            return
        self._borrowed.drop_done()
        if memory:
            event = _cupy().cuda.Event(disable_timing=True)
            event.record()
            self._borrowed.keep(memory, event)

    def from_host(self, array: np.ndarray) -> Array:
        # CuPy copies from page-locked memory asynchronously, and may take pageable memory over as it is: hence a copy
        # that nobody else can change. Flat, because a 0-d array would be filled by a kernel.
        own = np.array(array, order="C", copy=True)
        with self.scope():
            return _cupy().array(own.reshape(-1)).reshape(own.shape)

    def overwrite(self, target: Array, content: np.ndarray) -> None:
        with self.scope():
            target.set(content)

    def to_host(self, array: Array) -> np.ndarray:
        with self.scope():
            return _cupy().asnumpy(array)

    def synchronize(self) -> None:
        _cupy().cuda.Device(self.ordinal).synchronize()

    def is_kernel_fault(self, error: BaseException) -> bool:
        return isinstance(error, cuda_errors()) and error.status in _KERNEL_FAULTS  # type: ignore[attr-defined]

    def compile(self, source: str, entry: str, include: Path) -> bytes:
        return nvrtc_compile(source, entry, self.properties.arch, include)[0]

    def load(self, path: Path, entry: str, shared_bytes: int) -> Any:
        cupy = _cupy()
        with self.scope():
            try:
                kernel = cupy.RawModule(path=str(path)).get_function(entry)
            except UnicodeEncodeError as error:
                raise OSError(
                    f"CuPy loads no file at {str(path)!a}, which is not UTF-8: name a folder by FLASHCUPY_CACHE_DIR"
                ) from error
            except cupy.cuda.driver.CUDADriverError as error:
                if error.status in _BAD_FILE:
                    raise OSError(f"{path} cannot be loaded on {self.name}: {error}") from error
                raise
            if shared_bytes > _STATIC_LIMIT:
                kernel.max_dynamic_shared_size_bytes = shared_bytes
            return kernel

    def launch(self, kernel: Any, grid: int, block: int, shared_bytes: int, params: bytes | bytearray) -> None:
        if grid < 1:  # CuPy would launch one block
            raise ValueError(f"grid is {grid}, expected at least one block")
        # CuPy passes NumPy arrays of one element by value.
        by_value = np.frombuffer(params, f"V{len(params)}")
        kernel((grid,), (block,), (by_value,), shared_mem=shared_bytes)


class CupyRuntime:
    """Arrays in the memory of GPUs; implements `flashcupy.cuda.device.Runtime`."""

    def __init__(self) -> None:
        self._cupy = _cupy()
        self._devices: dict[int, CupyDevice] = {}

    def read(self, x: Any, name: str) -> tuple[Array, str]:
        if isinstance(x, self._cupy.ndarray):
            return x, "cupy"
        require_own_cuda()
        CupyDevice.borrows = True
        library = type(x).__module__.partition(".")[0]
        try:
            if _is_tensor(x):
                require_plain_tensor(x, name)
                return self._read_tensor(x), "torch"
            if hasattr(x, "__dlpack__"):
                return self._cupy.from_dlpack(x), "jax" if library in ("jax", "jaxlib") else "cupy"
            return self._read_interface(x), "cupy"
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            if getattr(error, "status", None) != _INSUFFICIENT_DRIVER:
                raise
            raise RuntimeError(
                f"{name} is on a GPU that CuPy cannot use ('flashcupy info' tells more): {error}"
            ) from None
        except (BufferError, NotImplementedError, RuntimeError, ValueError) as error:
            kind = f"{library} array of dtype {getattr(x, 'dtype', 'unknown')}"
            raise TypeError(f"{name} is a {kind} that CuPy cannot view: {error}{_hint(error)}") from error

    def _read_tensor(self, x: Any) -> Array:
        torch = sys.modules["torch"]
        if x.dtype == torch.bfloat16:
            return self._cupy.from_dlpack(x.view(torch.int16)).view(bfloat16())
        return self._cupy.from_dlpack(x)

    def _read_interface(self, x: Any) -> Array:
        pointer = x.__cuda_array_interface__["data"][0]
        if not pointer:  # no elements, on no device in particular
            return self._cupy.asarray(x)
        with self._cupy.cuda.Device(self._cupy.cuda.runtime.pointerGetAttributes(pointer).device):
            return self._cupy.asarray(x)  # on another device than the current one it would copy

    def write_back(self, array: Array, library: str) -> Any:
        if library == "cupy":
            return array
        # DLPack orders the receiver after the current stream of the current device, whichever the array's is.
        with self.device_of(array).scope():
            if library == "jax":
                return sys.modules["jax"].dlpack.from_dlpack(array)
            torch = sys.modules["torch"]
            if array.dtype.name == "bfloat16":
                return torch.from_dlpack(array.view(np.int16)).view(torch.bfloat16)
            return torch.from_dlpack(array)

    def pointer(self, array: Array) -> int:
        return array.data.ptr

    def empty_like(self, model: Array, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        with self.device_of(model).scope():
            if model.ndim != len(shape):
                return self._cupy.empty(shape, dtype)
            return self._cupy.empty_like(model, dtype=dtype, order="K", shape=shape)

    def device_of(self, array: Array) -> CupyDevice:
        return self.device(array.data.device_id)

    def device(self, ordinal: int) -> CupyDevice:
        require_own_cuda()
        # One object per device: kernels are remembered by it.
        return self._devices.get(ordinal) or self._devices.setdefault(ordinal, CupyDevice(ordinal))

    def count(self) -> int:
        require_own_cuda()
        try:
            count = self._cupy.cuda.runtime.getDeviceCount()
        except self._cupy.cuda.runtime.CUDARuntimeError:
            return 0
        note_use()
        return count


@functools.cache
def _borrowing_kinds() -> tuple[type, ...]:
    """Of memory that came through DLPack, and through CUDA's array interface."""
    from cupy._core.dlpack import DLPackMemory

    return DLPackMemory, _cupy().cuda.UnownedMemory


def _is_borrowed(memory: Any) -> bool:
    """Whether an owner is told when CuPy lets go of memory; that of `CupyDevice.view` has none."""
    return isinstance(memory, _borrowing_kinds()) and getattr(memory, "_owner", memory) is not None


def _is_tensor(x: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _hint(error: BaseException) -> str:
    """What to do about torch's refusal of the per-thread default stream."""
    if "per-thread default stream" not in str(error):
        return ""
    return " It is CuPy's current stream: unset CUPY_CUDA_PER_THREAD_DEFAULT_STREAM, or make another one current."
