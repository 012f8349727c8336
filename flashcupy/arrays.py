"""Arrays in and out: any producer is viewed without a copy, results go back in the same library.

Everything past this module sees two kinds of arrays only: `numpy.ndarray`, and arrays of the runtime behind
`flashcupy.cuda.device`, whose metadata is like NumPy's and whose values are out of reach. NumPy has no bfloat16 and its
DLPack reader refuses it, so bfloat16 tensors cross as 16-bit integers and are re-labelled with ml_dtypes' dtype.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from flashcupy.errors import UnsupportedError
from flashcupy.foreign import require_plain_tensor

if TYPE_CHECKING:
    from flashcupy.cuda.device import Runtime

Array = Any  # a numpy.ndarray, or an array of the runtime

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
HOST = "cpu"
_CPU_DLPACK_DEVICES = (1,)  # kDLCPU
_CUDA_DLPACK_DEVICES = (2, 13)  # kDLCUDA, kDLCUDAManaged
_JAX_ALIGNMENT = 64
# The runtime's own classes, noted when the first array comes: asking each for its interface would cost microseconds.
_device_classes: set[type] = set()


def bfloat16() -> np.dtype:
    """Return the bfloat16 dtype of ml_dtypes, the only one NumPy can hold."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 arrays need ml_dtypes: pip install 'flashcupy[bfloat16]'") from error
    return np.dtype(ml_dtypes.bfloat16)


@functools.lru_cache(64)
def dtype_name(dtype: np.dtype) -> str:
    """``dtype.name``, which NumPy puts together anew, in over a microsecond, each time it is asked."""
    return dtype.name


def accumulator(dtype: np.dtype | str) -> np.dtype:
    """Return the dtype that sums are kept in: float64 for float64, float32 for everything else."""
    return np.dtype(np.float64 if str(dtype) == "float64" else np.float32)


@functools.cache
def _device_module() -> Any:
    import flashcupy.cuda.device

    return flashcupy.cuda.device


def runtime() -> Runtime:
    """Return the runtime of device arrays; the first call imports CuPy, unless another runtime is installed."""
    return _device_module().runtime()


def on_host(array: Array) -> bool:
    """Whether an array that `read` returned is NumPy's."""
    return isinstance(array, np.ndarray)


def device_name(array: Array) -> str:
    """Where an array that `read` returned lives: "cpu", or the device's name, such as "cuda:0"."""
    return HOST if isinstance(array, np.ndarray) else runtime().device_of(array).name


def in_device_memory(x: Any) -> bool:
    """Whether `x`, of whatever library, is in the memory of a CUDA device; imports nothing."""
    if isinstance(x, np.ndarray):
        return False
    if type(x) in _device_classes:
        return True
    if _is_instance_of(x, "torch", "Tensor"):
        return x.device.type == "cuda" and sys.modules["torch"].version.hip is None
    if _is_instance_of(x, "jax", "Array"):
        return not isinstance(x, sys.modules["jax"].core.Tracer) and _jax_on_cuda(x)
    if hasattr(x, "__dlpack_device__"):
        return x.__dlpack_device__()[0] in _CUDA_DLPACK_DEVICES
    return hasattr(x, "__cuda_array_interface__")


def read(x: Any, name: str) -> tuple[Array, str]:
    """View `x` as an array of NumPy or of the device runtime, without a copy, and tell which library it came from.

    Returns
    -------
    array : numpy.ndarray, or an array of the runtime for what is in the memory of a CUDA device
    library : {"numpy", "torch", "jax", ...}
        Where results go back to. Other DLPack producers, and Python sequences, answer "numpy"; on a device they answer
        with the runtime's own library, "cupy".

    Raises
    ------
    TypeError
        For masked arrays, for tensors that record gradients and for values that a tracer stands for.
    UnsupportedError
        For arrays that are neither in host memory nor in that of a CUDA device.
    """
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, expected a plain array: fill it, and pass the pattern as mask=")
        return np.asarray(x), "numpy"
    if in_device_memory(x):
        array, library = runtime().read(x, name)
        if array is x:
            _device_classes.add(type(x))
        return array, library
    if _is_instance_of(x, "torch", "Tensor"):
        return _read_torch(x, name), "torch"
    if _is_instance_of(x, "jax", "Array"):
        return _read_jax(x, name), "jax"
    if hasattr(x, "__dlpack_device__"):
        return _read_dlpack(x, name), "numpy"
    try:
        return np.asarray(x), "numpy"
    except ValueError as error:
        raise TypeError(f"{name} is a {type(x).__name__} that makes no array: {error}") from None


def write_back(array: Array, library: str) -> Any:
    """Hand `array` over as an array of `library`, sharing its memory where the library can."""
    if not isinstance(array, np.ndarray):
        return runtime().write_back(array, library)
    if library == "torch":
        torch = sys.modules["torch"]
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    if library == "jax":
        return sys.modules["jax"].device_put(array, may_alias=True)
    return array


def native(array: Array) -> np.dtype:
    """The dtype that results modelled on `array` have: its own, in native byte order."""
    return array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")


def empty_like(model: Array, shape: tuple[int, ...], dtype: np.dtype, library: str) -> Array:
    """Allocate `shape` in the memory order of `model`, so that a transposed view's owner gets his own layout back."""
    if not isinstance(model, np.ndarray):
        return runtime().empty_like(model, shape, dtype)
    if library == "jax":
        return _empty_aligned(shape, dtype)
    order: Literal["K", "C"] = "K" if model.ndim == len(shape) else "C"
    return np.empty_like(model, dtype=dtype, order=order, subok=False, shape=shape)


def empty(model: Array, shape: tuple[int, ...], dtype: np.dtype, library: str) -> Array:
    """Allocate `shape` in row-major order where `model` lives."""
    if not isinstance(model, np.ndarray):
        return runtime().device_of(model).empty(shape, dtype)
    return _empty_aligned(shape, dtype) if library == "jax" else np.empty(shape, dtype)


def _empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Row-major memory on a 64-byte boundary: what JAX takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _JAX_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _JAX_ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def require_float(array: Any, name: str) -> None:
    """Check the dtype of an array, or of anything else that has one."""
    if dtype_name(array.dtype) not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}")


def _is_instance_of(x: Any, module: str, name: str) -> bool:
    """isinstance against a library that is only looked up, never imported: who owns such an array has imported it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(x, getattr(loaded, name, ()))


def _refuse(device: str, name: str) -> NoReturn:
    raise UnsupportedError(f"{name} lives on {device}; flashcupy computes in host memory and on CUDA devices")


def _jax_on_cuda(x: Any) -> bool:
    """JAX calls CUDA and ROCm devices "gpu" both; DLPack tells them apart, and refuses arrays of several devices."""
    devices = x.devices()
    on_gpu = len(devices) == 1 and all(device.platform in ("gpu", "cuda") for device in devices)
    return on_gpu and x.__dlpack_device__()[0] in _CUDA_DLPACK_DEVICES


def _read_torch(x: Any, name: str) -> np.ndarray:
    torch = sys.modules["torch"]
    require_plain_tensor(x, name)
    if x.device.type != "cpu":
        _refuse(f"{x.device} of ROCm" if x.device.type == "cuda" else str(x.device), name)
    try:
        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy().view(bfloat16())
        return x.numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(f"{name} is a torch tensor of {x.dtype} that NumPy cannot view: {error}") from None


def _read_jax(x: Any, name: str) -> np.ndarray:
    jax = sys.modules["jax"]
    if isinstance(x, jax.core.Tracer):
        raise TypeError(
            f"{name} is a JAX tracer, which has no data: call flashcupy outside jit, or through jax.pure_callback with "
            "a jax.custom_vjp that keeps out and lse"
        )
    platforms = {device.platform for device in x.devices()}
    if platforms != {"cpu"}:
        _refuse("/".join(sorted(platforms)), name)
    return np.asarray(x)


def _read_dlpack(x: Any, name: str) -> np.ndarray:
    device_type, device_id = x.__dlpack_device__()
    if device_type not in _CPU_DLPACK_DEVICES:
        _refuse(f"DLPack device ({int(device_type)}, {device_id})", name)
    try:
        return np.from_dlpack(x)
    except (BufferError, RuntimeError) as error:
        raise TypeError(f"{name} is a {type(x).__name__} that NumPy cannot read through DLPack: {error}") from error
