"""Exact attention for arrays: forward, backward and block-sparse, in memory linear in the sequence length."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from flashcupy._version import __version__
from flashcupy.api import attention, attention_bwd, attention_fwd, explain, warmup
from flashcupy.block_scores import block_mass, pooled_scores
from flashcupy.cpu import num_threads, set_num_threads
from flashcupy.errors import FirstUseError, KernelCompileError, NotWarmedUpError, UnsupportedError
from flashcupy.merge import merge_attention
from flashcupy.residuals import AttentionResiduals
from flashcupy.results import AttentionGrads, Explanation
from flashcupy.spec import AttentionSpec
from flashcupy.varlen import attention_varlen, attention_varlen_bwd, attention_varlen_fwd

if TYPE_CHECKING:
    from flashcupy import reference
    from flashcupy.block_mask import BlockMask

__all__ = [
    "AttentionGrads",
    "AttentionResiduals",
    "AttentionSpec",
    "BlockMask",
    "Explanation",
    "FirstUseError",
    "KernelCompileError",
    "NotWarmedUpError",
    "UnsupportedError",
    "__version__",
    "attention",
    "attention_bwd",
    "attention_fwd",
    "attention_varlen",
    "attention_varlen_bwd",
    "attention_varlen_fwd",
    "block_mass",
    "explain",
    "merge_attention",
    "num_threads",
    "pooled_scores",
    "reference",
    "set_num_threads",
    "warmup",
]


# Imported at first use: they are half of what importing the package would cost, and not every program needs them.
def __getattr__(name: str) -> object:
    if name == "BlockMask":
        return importlib.import_module("flashcupy.block_mask").BlockMask
    if name == "reference":
        return importlib.import_module("flashcupy.reference")
    raise AttributeError(f"module 'flashcupy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
