"""The NumPy backend: tiled attention with an online softmax, threads over heads, O(S) memory."""

from flashcupy.cpu.backward import backward
from flashcupy.cpu.block_scores import block_mass, pooled_scores
from flashcupy.cpu.forward import Kept, forward, kept_from_lse
from flashcupy.cpu.merge import merge
from flashcupy.cpu.plan import backward_workspace, explain, forward_workspace, warmup
from flashcupy.cpu.threads import num_threads, set_num_threads

__all__ = [
    "Kept",
    "backward",
    "backward_workspace",
    "block_mass",
    "explain",
    "forward",
    "forward_workspace",
    "kept_from_lse",
    "merge",
    "num_threads",
    "pooled_scores",
    "set_num_threads",
    "warmup",
]
