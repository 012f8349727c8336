"""The CUDA backend: the functions of `flashcupy.backend.Backend` by kernels compiled at run time."""

from flashcupy.cuda.block_scores import block_mass, pooled_scores
from flashcupy.cuda.combine import merge
from flashcupy.cuda.serve import (
    backward,
    backward_workspace,
    explain,
    forward,
    forward_workspace,
    kept_from_lse,
    warmup,
)

__all__ = [
    "backward",
    "backward_workspace",
    "block_mass",
    "explain",
    "forward",
    "forward_workspace",
    "kept_from_lse",
    "merge",
    "pooled_scores",
    "warmup",
]
