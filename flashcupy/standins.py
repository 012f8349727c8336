"""(shape, dtype) pairs in place of arrays, for calls that only look at metadata."""

from __future__ import annotations

from typing import Any

import numpy as np

from flashcupy.arrays import bfloat16


def arrays_or_standins(*operands: Any) -> tuple[Any, ...]:
    """Replace (shape, dtype) pairs by arrays of that shape that take no memory; leave arrays as they are."""
    return tuple(_standin(x) if _is_standin(x) else x for x in operands)


def _is_standin(x: Any) -> bool:
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], (tuple, list)) and _is_dtype(x[1])


def _is_dtype(x: Any) -> bool:
    return isinstance(x, (str, type, np.dtype))


def _standin(x: tuple[tuple[int, ...], Any]) -> np.ndarray:
    shape, dtype = x
    try:
        element = np.zeros((), bfloat16() if dtype == "bfloat16" else dtype)
        return np.broadcast_to(element, tuple(shape))
    except (TypeError, ValueError):
        raise TypeError(f"the stand-in {x!r} names no array, expected ((extents >= 0), dtype)") from None
