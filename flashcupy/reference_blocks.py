"""The oracle for scores of blocks, in naive float64 NumPy on top of `flashcupy.reference`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from flashcupy.reference import FLOAT64, Arithmetic, Array, ArrayLike, Options, forward, with_heads


def pooled_scores(
    q: ArrayLike,
    k: ArrayLike,
    *,
    block_size: tuple[int, int],
    scale: float | None = None,
    arithmetic: Arithmetic = FLOAT64,
) -> Array:
    """Compute what `flashcupy.pooled_scores` does."""
    q4, k4 = with_heads((q, k), arithmetic)
    q4, k4 = (over_blocks(np.mean, x, size, axis=-2) for x, size in zip((q4, k4), block_size, strict=True))
    k4 = np.repeat(k4, q4.shape[-3] // max(k4.shape[-3], 1), axis=-3)
    scores = q4 @ k4.mT * (1 / math.sqrt(q4.shape[-1]) if scale is None else scale)
    return scores[0] if np.ndim(q) == np.ndim(k) == 2 else scores


@np.errstate(invalid="ignore", over="ignore", divide="ignore")
def block_mass(
    q: ArrayLike, k: ArrayLike, *, block_size: tuple[int, int], arithmetic: Arithmetic = FLOAT64, **options: Any
) -> Array:
    """Compute what `flashcupy.block_mass` does."""
    q4, k4 = with_heads((q, k), arithmetic)
    f = forward(q4, k4, k4, Options(**options), arithmetic)
    mass = over_blocks(np.sum, over_blocks(np.sum, f.p, block_size[0], axis=-2), block_size[1], axis=-1)
    rows = over_blocks(np.sum, f.sees[..., None].astype(arithmetic.dtype), block_size[0], axis=-2)
    mass = mass / np.maximum(rows, 1)
    return mass[0] if np.ndim(q) == np.ndim(k) == 2 else mass


def over_blocks(reduce: Any, x: Array, size: int, *, axis: int) -> Array:
    """Reduce blocks of `size` along an axis, the last of which may be ragged."""
    cuts = np.split(x, range(size, x.shape[axis], size), axis) if x.shape[axis] else []
    shape = list(x.shape)
    shape[axis] = 0
    parts = [reduce(part, axis=axis, keepdims=True) for part in cuts]
    return np.concatenate([np.empty(shape, x.dtype), *parts], axis)
