"""The NumPy backend: tiled attention with an online softmax, threads over heads, O(S) memory."""

from flashcupy.cpu.backward import backward
from flashcupy.cpu.block_scores import block_mass, pooled_scores
from flashcupy.cpu.forward import Kept, forward, kept_from_lse
from flashcupy.cpu.merge import merge
from flashcupy.cpu.plan import explain, warmup
from flashcupy.cpu.threads import num_threads, set_num_threads

__all__ = [
    "Kept",
    "backward",
    "block_mass",
    "explain",
    "forward",
    "kept_from_lse",
    "merge",
    "num_threads",
    "pooled_scores",
    "set_num_threads",
    "warmup",
]
