"""The NumPy backend: tiled attention with an online softmax, threads over heads, O(S) memory."""

from flashcupy.cpu.backward import Upstream, backward
from flashcupy.cpu.forward import Kept, forward
from flashcupy.cpu.plan import explain
from flashcupy.cpu.threads import num_threads, set_num_threads

__all__ = ["Kept", "Upstream", "backward", "explain", "forward", "num_threads", "set_num_threads"]
