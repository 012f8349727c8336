"""How far from the oracle a result may be: the contract's bound, set by the naive computation in the same dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.reference import Arithmetic

Array = npt.NDArray[Any]


def coarse(dtype: npt.DTypeLike, precision: str = "highest") -> Arithmetic:
    """Arithmetic of the naive computation: matmuls accumulated in float32 (float64), S, P and their gradients rounded.

    `flashcupy.reference` computes with it: ``reference.attention(q, k, v, arithmetic=coarse(q.dtype))``. With
    `precision` "tf32" what float32 matmuls multiply is rounded to TF32, and nothing else.
    """
    wide = np.promote_types(dtype, np.float32)
    if precision == "tf32" and dtype == np.float32:
        return Arithmetic(wide, lambda x: x, rounded_to_tf32)
    return Arithmetic(wide, lambda x: x.astype(dtype).astype(wide), lambda x: x.astype(dtype).astype(wide))


def rounded_to_tf32(x: Array) -> Array:
    """Round float32 to 10 explicit mantissa bits, to nearest and ties to even."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    kept = (bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)
    return np.where(np.isfinite(x), kept.view(np.float32), x)


def allowed_error(
    expected: Array,
    naive: Array | None,
    dtype: np.dtype[Any],
    *,
    grad: bool,
    num_keys: int,
    precision: str = "highest",
) -> float:
    """Largest error that the contract allows in one tensor.

    Parameters
    ----------
    expected : array of float64
        From the oracle; entries that are not finite do not count.
    naive : array or None
        From the naive computation, rounded to the dtype under test; None will do for float64.
    dtype : numpy.dtype
        Of the result.
    grad : bool
        3 times the error of `naive` is allowed instead of 2.
    num_keys : int
        Sk, for the bound of float64.
    precision : str
        "tf32" is for float32 whose `naive` is of that precision.

    Raises
    ------
    ValueError
        If the naive computation is not finite where the oracle is: it bounds nothing.
    """
    finite = np.isfinite(expected)
    top = float(np.abs(expected[finite]).max(initial=0))
    if dtype == np.float64:
        return 64 * float(np.finfo(np.float64).eps) * math.sqrt(num_keys) * top
    if naive is None:
        raise ValueError(f"naive is None for {dtype}, expected the naive computation's result")
    slip = float(np.abs(naive.astype(np.float64)[finite] - expected[finite]).max(initial=0))
    if not math.isfinite(slip):
        raise ValueError("the naive computation overflows where the oracle is finite: it bounds nothing")
    numbers = "tf32" if precision == "tf32" and dtype == np.float32 else dtype.name
    return (3 if grad else 2) * slip + 2 * _ulp(top, numbers)


def _ulp(value: float, numbers: str) -> float:
    """Distance of neighbouring numbers of that size."""
    bits = {"float16": (10, -14), "bfloat16": (7, -126), "float32": (23, -126), "tf32": (10, -126)}
    mantissa, least = bits[numbers]
    return 2.0 ** (math.floor(math.log2(max(value, 2.0**least))) - mantissa)
