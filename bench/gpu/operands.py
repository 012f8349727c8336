"""The arrays of a row, made once and shared by all candidates of it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gpu.options import OPTIONS, dtype_of
from bench.gpu.problem import Problem

DRAWS = 1 << 24
STRIDE = 4_999_999  # between the operands' places in the draws


@dataclass(frozen=True)
class Operands:
    """q, k, v and dout of shape (batch, heads, length, head_dim), row-major, and the options' arguments.

    Attributes
    ----------
    xp
        The array module: cupy, or numpy in the tests.
    arguments
        flashcupy's keyword arguments.
    """

    xp: Any
    q: Any
    k: Any
    v: Any
    dout: Any
    arguments: dict[str, Any]


def make(problem: Problem, xp: Any) -> Operands:
    """Draw normal operands for a problem."""
    of_q = (problem.batch, problem.heads, problem.q_length, problem.head_dim)
    of_k = (problem.batch, problem.kv_heads, problem.kv_length, problem.head_dim)
    q, k, v, dout = (normal(xp, shape, problem.dtype, i) for i, shape in enumerate((of_q, of_k, of_k, of_q)))
    arguments: dict[str, Any] = {"causal": problem.causal, "precision": problem.precision}
    for option in problem.options:
        arguments |= {name: put(xp, value) for name, value in OPTIONS[option].arguments(problem).items()}
    return Operands(xp, q, k, v, dout, arguments)


def normal(xp: Any, shape: tuple[int, ...], dtype: str, place: int) -> Any:
    """Return normal values of `dtype`; arrays of different `place` differ."""
    count = int(np.prod(shape))
    draws = _draws_on_device(xp, dtype)
    values = draws[(place * STRIDE + xp.arange(count)) % DRAWS]
    return values.view(dtype_of(dtype)).reshape(shape)


@functools.lru_cache(maxsize=1)
def _draws_on_device(xp: Any, dtype: str) -> Any:
    return xp.asarray(_bits(np.random.default_rng(0).standard_normal(DRAWS, np.float32).astype(dtype_of(dtype))))


def put(xp: Any, value: Any) -> Any:
    """Copy a host array to the device; leave anything else alone."""
    if not isinstance(value, np.ndarray):
        return value
    return xp.asarray(_bits(value)).view(value.dtype)


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View as integers, which every array library moves and indexes: bfloat16 is young in CuPy."""
    return array.view(np.bool_ if array.dtype == np.bool_ else f"u{array.itemsize}")


def moved(operands: Operands, xp: Any) -> Operands:
    """Copy operands in host memory to the device, without a kernel."""
    q, k, v, dout = (put(xp, x) for x in (operands.q, operands.k, operands.v, operands.dout))
    return Operands(xp, q, k, v, dout, {name: put(xp, value) for name, value in operands.arguments.items()})


def widen(xp: Any, array: Any) -> Any:
    """Return an array of any of the four dtypes as float64."""
    if str(array.dtype) == "bfloat16":
        array = (xp.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)
