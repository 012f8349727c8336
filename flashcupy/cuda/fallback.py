"""Which kernel family serves: the first, in order of preference, that compiles here and passes its first-use check."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from flashcupy.errors import FirstUseError, KernelCompileError

T = TypeVar("T")

_told: set[tuple[str, str]] = set()
_lock = threading.Lock()


def first_that_works(families: Sequence[str], attempt: Callable[[str], T], device: str) -> T:
    """Return what `attempt` makes of the first family that works.

    Parameters
    ----------
    families : sequence of str
        Names of those to try, the preferred one first; at least one.
    attempt : callable
        Compiles, loads and checks what the request needs of a family.
    device : str
        Name of the device: a family that is passed over is warned of once per device.

    Raises
    ------
    KernelCompileError, FirstUseError
        From the last family, or from the first to fail with FLASHCUPY_FALLBACK=error.

    Other exceptions of `attempt` pass through at once.
    """
    for family, following in pairwise(families):
        try:
            return attempt(family)
        except (KernelCompileError, FirstUseError) as error:
            if _fallback_is_an_error():
                raise
            _tell(family, following, device, error)
    return attempt(families[-1])


def candidates(families: Sequence[str]) -> Sequence[str]:
    """What the environment leaves of the families that can serve a request.

    Raises
    ------
    ValueError
        If FLASHCUPY_FAMILY names none of `families`, or FLASHCUPY_FALLBACK is neither "error" nor "warn".
    """
    _fallback_is_an_error()  # a wrong value is told before anything fails
    family = os.environ.get("FLASHCUPY_FAMILY")
    if not family:
        return families
    if family not in families:
        raise ValueError(f"FLASHCUPY_FAMILY is {family!r}, expected one that serves this call: {', '.join(families)}")
    return [family]


def _fallback_is_an_error() -> bool:
    value = os.environ.get("FLASHCUPY_FALLBACK") or "warn"
    if value not in ("warn", "error"):
        raise ValueError(f"FLASHCUPY_FALLBACK is {value!r}, expected warn or error")
    return value == "error"


def _tell(family: str, following: str, device: str, error: Exception) -> None:
    with _lock:
        told = (family, device) in _told
        _told.add((family, device))
    if not told:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"kernel family {family} does not work on {device}, {following} serves in its place and may be slower: "
            f"{reason}; FLASHCUPY_FALLBACK=error raises instead",
            RuntimeWarning,
            stacklevel=2,
        )
