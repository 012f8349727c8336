"""(shape, dtype) pairs in place of arrays, for calls that only look at metadata."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcupy.arrays import bfloat16


def arrays_or_standins(*operands: Any) -> tuple[Any, ...]:
    """Replace (shape, dtype) pairs by arrays of that shape that take no memory; leave arrays as they are."""
    return tuple(_standin(x) if _is_standin(x) else x for x in operands)


def _is_standin(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple) and not isinstance(x[1], (tuple, list))


def _standin(x: tuple[tuple[int, ...], Any]) -> np.ndarray:
    shape, dtype = x
    name = bfloat16() if dtype == "bfloat16" else np.dtype(dtype)
    return np.broadcast_to(np.zeros((), name), shape)
