"""Exceptions as statuses of the C interface, with messages in its words."""

from __future__ import annotations

import _thread
import re
import sys

from flashcupy.errors import FirstUseError, KernelCompileError, NotWarmedUpError, UnsupportedError

OK = 0
INVALID_ARGUMENT = 1
UNSUPPORTED = 2
OUT_OF_MEMORY = 3
COMPILE = 4
CUDA = 5
PYTHON = 6
NOT_WARMED_UP = 7
INTERNAL = 9

_ALLOCATION = 2  # cudaErrorMemoryAllocation and CUDA_ERROR_OUT_OF_MEMORY


class NoDeviceError(RuntimeError):
    """There is no CUDA device, or no driver."""


# The first that fits: UnsupportedError is a RuntimeError too.
_STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (NotWarmedUpError, NOT_WARMED_UP),
    (KernelCompileError, COMPILE),
    (FirstUseError, COMPILE),
    (UnsupportedError, UNSUPPORTED),
    (MemoryError, OUT_OF_MEMORY),
    (ImportError, PYTHON),
    (NoDeviceError, CUDA),
    (TypeError, INVALID_ARGUMENT),
    (ValueError, INVALID_ARGUMENT),
)

# What the Python calls say, and the header.
_WORDS = (
    ("residuals.", ""),
    (r"\bout\.(d[qkv]|dbias|dsinks)\b", r"\1"),
    ("lse_out", "lse"),
    ("out holds", "block_mask holds"),
    ("out must be", "block_mask must be"),
    ("seed is an array", "seed_words is an array"),
    ("(mask|bias)=", r"\1"),
    (", or None for no cap", ""),
    ("flashcupy.warmup", "flashcupy_warmup"),
    ("with the same arguments, or build the mask once,", "with the same arguments"),
    (r"\b(is|was) None\b", r"\1 NULL"),
)


def told(error: BaseException) -> tuple[str, int]:
    """The text and the status of an exception; never raises."""
    try:
        return message(error), of(error)
    except BaseException as another:
        return f"{type(error).__name__}, and {type(another).__name__} in telling it", INTERNAL


def of(error: BaseException) -> int:
    """The status that stands for an exception."""
    if _of_cuda(error):
        return OUT_OF_MEMORY if getattr(error, "status", None) == _ALLOCATION else CUDA
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), INTERNAL)


def message(error: BaseException) -> str:
    """What to tell of an exception; where it should not have come at all, its type and place too."""
    if isinstance(error, KeyboardInterrupt):
        _thread.interrupt_main()  # for the Python that runs the host, once the call has returned
        return "interrupted by a signal to the host's Python (KeyboardInterrupt)"
    text = str(error)
    for python, c in _WORDS:
        text = re.sub(python, c, text)
    if of(error) != INTERNAL:
        return text or type(error).__name__
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
    return f"{type(error).__name__}: {text}{where}"


def _of_cuda(error: BaseException) -> bool:
    """Whether CuPy raised it for an error of the runtime or the driver; nothing is imported to find out."""
    cupy = sys.modules.get("cupy")
    if cupy is None or not isinstance(error, RuntimeError):
        return False
    try:
        return isinstance(error, (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.driver.CUDADriverError))
    except AttributeError:  # half imported, or too old
        return False
