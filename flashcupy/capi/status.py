"""Exceptions as statuses of the C interface, with messages in its words."""

from __future__ import annotations

import sys

from flashcupy.errors import FirstUseError, KernelCompileError, NotWarmedUpError, UnsupportedError
from flashcupy.results import AttentionGrads

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

# The first that fits: UnsupportedError is a RuntimeError too.
_STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (NotWarmedUpError, NOT_WARMED_UP),
    (KernelCompileError, COMPILE),
    (FirstUseError, COMPILE),
    (UnsupportedError, UNSUPPORTED),
    (MemoryError, OUT_OF_MEMORY),
    (ImportError, PYTHON),
    (TypeError, INVALID_ARGUMENT),
    (ValueError, INVALID_ARGUMENT),
)

# What the Python calls say, and the header.
_WORDS = (
    ("residuals.", ""),
    *((f"out.{name}", name) for name in AttentionGrads._fields),
    ("out holds", "block_mask holds"),
    ("lse_out", "lse"),
    ("flashcupy.warmup", "flashcupy_warmup"),
    ("with the same arguments, or build the mask once,", "with the same arguments"),
)


def of(error: BaseException) -> int:
    """The status that stands for an exception."""
    if _of_cuda(error):
        return OUT_OF_MEMORY if getattr(error, "status", None) == _ALLOCATION else CUDA
    return next((status for kind, status in _STATUSES if isinstance(error, kind)), INTERNAL)


def message(error: BaseException) -> str:
    """What to tell of an exception; where it should not have come at all, its type and place too."""
    text = str(error)
    for python, c in _WORDS:
        text = text.replace(python, c)
    if of(error) != INTERNAL:
        return text or type(error).__name__
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = "" if place is None else f" ({place.tb_frame.f_code.co_filename}:{place.tb_lineno})"
    return f"{type(error).__name__}: {text}{where}"


def _of_cuda(error: BaseException) -> bool:
    if "cupy" not in sys.modules:
        return False
    from flashcupy.cuda.cupy_device import cuda_errors

    return isinstance(error, cuda_errors())
