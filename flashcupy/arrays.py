"""Arrays in and out: any CPU producer is viewed as NumPy without a copy, results go back in the same library.

Everything past this module sees `numpy.ndarray` only. NumPy has no bfloat16 and its DLPack reader refuses it, so
bfloat16 tensors cross as 16-bit integers and are re-labelled with ml_dtypes' dtype.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any, Literal, NoReturn

import numpy as np

from flashcupy.errors import UnsupportedError

FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")
_CPU_DLPACK_DEVICES = (1,)  # kDLCPU
# np.shares_memory solves a Diophantine problem; this bounds it, and what stays undecided counts as overlap.
_OVERLAP_WORK = 100_000
_JAX_ALIGNMENT = 64


def bfloat16() -> np.dtype:
    """Return the bfloat16 dtype of ml_dtypes, the only one NumPy can hold."""
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 arrays need ml_dtypes: pip install 'flashcupy[bfloat16]'") from error
    return np.dtype(ml_dtypes.bfloat16)


def accumulator(dtype: np.dtype | str) -> np.dtype:
    """Return the dtype that sums are kept in: float64 for float64, float32 for everything else."""
    return np.dtype(np.float64 if str(dtype) == "float64" else np.float32)


def read(x: Any, name: str) -> tuple[np.ndarray, str]:
    """View `x` as a NumPy array, without a copy, and tell which library it came from.

    Returns
    -------
    array : numpy.ndarray
    library : {"numpy", "torch", "jax"}
        Where results go back to. Other DLPack producers, and Python sequences, answer "numpy".

    Raises
    ------
    TypeError
        For masked arrays, for tensors that record gradients and for values that a tracer stands for.
    UnsupportedError
        For arrays that are not in host memory.
    """
    if isinstance(x, np.ndarray):
        if isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, expected a plain array: fill it, and pass the pattern as mask=")
        return np.asarray(x), "numpy"
    if _is_instance_of(x, "torch", "Tensor"):
        return _read_torch(x, name), "torch"
    if _is_instance_of(x, "jax", "Array"):
        return _read_jax(x, name), "jax"
    if hasattr(x, "__dlpack_device__"):
        return _read_dlpack(x, name), "numpy"
    if hasattr(x, "__cuda_array_interface__"):
        _refuse("a CUDA device", name)
    try:
        return np.asarray(x), "numpy"
    except ValueError as error:
        raise TypeError(f"{name} is a {type(x).__name__} that makes no array: {error}") from None


def write_back(array: np.ndarray, library: str) -> Any:
    """Hand `array` over as an array of `library`, sharing its memory where the library can."""
    if library == "torch":
        torch = sys.modules["torch"]
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        return torch.from_numpy(array)
    if library == "jax":
        return sys.modules["jax"].device_put(array, may_alias=True)
    return array


def read_float(x: Any, name: str) -> tuple[np.ndarray, str]:
    """`read`, and require one of the four floating dtypes."""
    array, library = read(x, name)
    require_float(array, name)
    return array, library


def require_float(array: np.ndarray, name: str) -> None:
    if array.dtype.name not in FLOAT_DTYPES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}")


def native(array: np.ndarray) -> np.dtype:
    """The dtype that results modelled on `array` have: its own, in native byte order."""
    return array.dtype.newbyteorder("=")


def empty_like(model: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, library: str) -> np.ndarray:
    """Allocate `shape` in the memory order of `model`, so that a transposed view's owner gets his own layout back."""
    if library == "jax":
        return _empty_aligned(shape, dtype)
    order: Literal["K", "C"] = "K" if model.ndim == len(shape) else "C"
    return np.empty_like(model, dtype=dtype, order=order, subok=False, shape=shape)


def _empty_aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Row-major memory on a 64-byte boundary: what JAX takes over without a copy."""
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _JAX_ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _JAX_ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def read_output(x: Any, name: str, library: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> np.ndarray:
    """View an array that results will be written into."""
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"{name} is a {type(x).__name__}, expected an array that can be written to")
    array, own = read(x, name)
    if own != library:
        raise TypeError(f"{name} is a {own} array and the inputs are {library} ones, expected one library")
    require(array, name, shape, dtypes)
    if library == "jax" or not array.flags.writeable:
        raise TypeError(f"{name} is an immutable {own} array, expected memory that can be written to")
    if any(stride == 0 and extent > 1 for stride, extent in zip(array.strides, array.shape, strict=True)):
        raise ValueError(f"{name} is a broadcast view (strides {array.strides}), expected memory of its own")
    return array


def require(array: np.ndarray, name: str, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    if array.dtype.name not in dtypes:
        raise TypeError(f"{name} has dtype {array.dtype}, expected {' or '.join(dtypes)}")


def require_no_overlap(array: np.ndarray, name: str, others: Iterable[tuple[str, np.ndarray | None]]) -> None:
    for other_name, other in others:
        if other is not None and _overlaps(array, other):
            raise ValueError(f"{name} shares memory with {other_name}, expected memory of its own")


def _overlaps(a: np.ndarray, b: np.ndarray) -> bool:
    try:
        return np.shares_memory(a, b, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]  # the stub knows only -1 and 0
    except np.exceptions.TooHardError:
        return True


def _is_instance_of(x: Any, module: str, name: str) -> bool:
    """isinstance against a library that is only looked up, never imported: who owns such an array has imported it."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(x, getattr(loaded, name, ()))


def _refuse(device: str, name: str) -> NoReturn:
    raise UnsupportedError(f"{name} lives on {device}; this version of flashcupy computes on host memory only")


def _read_torch(x: Any, name: str) -> np.ndarray:
    torch = sys.modules["torch"]
    if x.requires_grad:
        raise TypeError(
            f"{name} is a torch tensor that requires grad, which flashcupy does not record: pass {name}.detach(), and "
            "call attention_fwd and attention_bwd from a torch.autograd.Function"
        )
    if x.device.type != "cpu":
        _refuse(str(x.device), name)
    if x.layout != torch.strided:
        raise TypeError(f"{name} is a torch tensor of layout {x.layout}, expected torch.strided")
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
