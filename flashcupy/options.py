"""The options of a call as the user wrote them, and the checks of those that are plain values."""

from __future__ import annotations

import math
import operator
import os
import warnings
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from flashcupy import arrays, operands
from flashcupy.arrays import Array
from flashcupy.philox import keep_threshold

CAUSAL_ALIGNMENTS = ("bottom-right", "top-left")
PRECISIONS = ("highest", "tf32")
_UINT64_END = 1 << 64


class Options(NamedTuple):
    """Every option of `flashcupy.attention`, unchecked; the defaults are the public ones."""

    causal: Any = False
    scale: Any = None
    window: Any = None
    mask: Any = None
    bias: Any = None
    alibi_slopes: Any = None
    softcap: Any = None
    sinks: Any = None
    block_mask: Any = None
    dropout: Any = 0.0
    seed: Any = None
    q_lengths: Any = None
    kv_lengths: Any = None
    precision: Any = "highest"

    @classmethod
    def of(cls, call: dict[str, Any]) -> Options:
        """Pick the options out of the local variables of a public function, where all its arguments stand."""
        return cls._make(_pick(call))


_pick = operator.itemgetter(*Options._fields)


def check_causal(causal: Any) -> str | None:
    """Return the alignment of the causal diagonal, or None."""
    if isinstance(causal, (bool, np.bool_)):
        return "bottom-right" if causal else None
    if isinstance(causal, str) and causal in CAUSAL_ALIGNMENTS:
        return causal
    raise ValueError(f"causal is {causal!r}, expected False, True, 'bottom-right' or 'top-left'")


def check_scale(scale: Any, head_dim: int) -> float:
    if scale is None:
        return 1.0 / math.sqrt(head_dim)
    return _finite(scale, "scale")


def check_softcap(softcap: Any) -> float | None:
    if softcap is None:
        return None
    value = _finite(softcap, "softcap")
    if value <= 0:
        raise ValueError(f"softcap is {softcap!r}, expected a number above 0, or None for no cap")
    return value


def check_window(window: Any) -> tuple[int | None, int | None]:
    if window is None:
        return None, None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"window is {window!r}, expected a pair (left, right) of int >= 0 or None")
    left, right = (_window_side(side, window) for side in window)
    return left, right


def _window_side(side: Any, window: Any) -> int | None:
    if side is None:
        return None
    try:
        value = _index(side)
    except TypeError:
        raise TypeError(f"window is {window!r}, expected a pair (left, right) of int >= 0 or None") from None
    if isinstance(side, (bool, np.bool_)) or value < 0:
        raise ValueError(f"window is {window!r}, expected (left, right) of int >= 0; None, not -1, means unbounded")
    return value


def check_dropout(dropout: Any) -> float:
    value = _finite(dropout, "dropout")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"dropout is {dropout!r}, expected a probability 0 <= p < 1")
    return value


def warn_of_dropout(dropout: float) -> None:
    """Warn, in the name of a public function's caller, of a dropout that rounds to nothing or to everything."""
    if keep_threshold(dropout) in (0, 256):
        what = "nothing" if keep_threshold(dropout) else "everything"
        warnings.warn(f"dropout is {dropout!r}, which in steps of 1/256 drops {what}", stacklevel=5)


def check_seed(seed: Any, dropout: float, device: str) -> tuple[int, int] | Array | None:
    """Return (seed, offset) or a device array of both; drawn here, where dropout needs a seed and none was given."""
    if seed is None:
        return (int.from_bytes(os.urandom(8), "little"), 0) if dropout else None
    if getattr(seed, "ndim", 0) or arrays.in_device_memory(seed):
        words = operands.small(seed, "seed", device)
        if words.shape != (2,) or words.dtype != np.uint64:
            raise TypeError(f"seed is an array {words.shape} of {words.dtype}, expected uint64 of shape (2,)")
        return (int(words[0]), int(words[1])) if arrays.on_host(words) else words
    pair = tuple(seed) if isinstance(seed, (tuple, list)) else (seed, 0)
    if len(pair) != 2:
        raise ValueError(f"seed has {len(pair)} values, expected an int or (seed, offset)")
    return _uint64(pair[0], seed), _uint64(pair[1], seed)


def _uint64(value: Any, seed: Any) -> int:
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"seed is {seed!r}, expected an int or (seed, offset)")
    try:
        number = _index(value)
    except TypeError:
        raise TypeError(f"seed is {seed!r}, expected an int or (seed, offset), or a uint64 array of 2") from None
    if not 0 <= number < _UINT64_END:
        raise ValueError(f"seed is {seed!r}, expected values 0 <= s < 2**64")
    return number


def _index(value: Any) -> int:
    """`operator.index`, except for device arrays: it would wait for the device and copy from it."""
    if arrays.in_device_memory(value):
        raise TypeError
    return operator.index(value)


def check_precision(precision: Any) -> str:
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}, expected 'highest' or 'tf32'")
    return precision


def _finite(value: Any, name: str) -> float:
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name} is {value!r} of type {type(value).__name__}, expected a real number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {value!r}, expected a finite number")
    return number
