"""What differs between float32 and float64 tiles: dtype, exponential and its base, bit patterns, limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

from flashcupy.arrays import accumulator


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """Tile arithmetic of one accumulation dtype.

    Scores are kept in `unit`s, so that ``exp(score * unit)`` is the softmax numerator: log2(e) where ``exp`` is the
    exponential of base 2, 1 where it is that of base e.
    """

    dtype: np.dtype
    exp: np.ufunc
    log: np.ufunc
    unit: float
    bits: np.dtype
    # Row sums of one tile above this make the running maximum move. Any value far below overflow is right; a small
    # one keeps |score - reference| small, and with it the rounding error of the exponential's argument.
    growth_limit: float


@cache
def arithmetic(dtype: str) -> Arithmetic:
    acc = accumulator(dtype)
    bits = np.dtype(f"i{acc.itemsize}")
    if _exp2_is_vectorised(acc):
        return Arithmetic(acc, np.exp2, np.log2, math.log2(math.e), bits, 2.0**20)
    return Arithmetic(acc, np.exp, np.log, 1.0, bits, 2.0**20)


def _exp2_is_vectorised(dtype: np.dtype) -> bool:
    """NumPy has exp in AVX2 but exp2 only in AVX-512; elsewhere exp2 calls libm once per element, ten times slower."""
    info = np.lib.introspect.opt_func_info(func_name="^exp2$", signature=dtype.name)
    return any(not target["current"].startswith("baseline") for kinds in info.values() for target in kinds.values())
