"""What a backend is. There are two, NumPy's and CUDA's; where the operands live decides which one serves a call."""

from __future__ import annotations

import functools
import importlib
from typing import Any, Protocol

from flashcupy.arrays import HOST, Array
from flashcupy.results import Explanation
from flashcupy.spec import AttentionProblem


class Backend(Protocol):
    """Functions of the packages `flashcupy.cpu` and `flashcupy.cuda`. All arrays are checked; outputs are allocated."""

    def forward(self, problem: AttentionProblem, out: Array, lse: Array, keep: bool) -> Any:
        """Compute out (..., H, Sq, Dv) and lse (..., H, Sq), and return what a backward needs besides, if to `keep`."""
        ...

    def kept_from_lse(self, lse: Array) -> Any:
        """What `forward` returns, of a forward that was computed elsewhere."""
        ...

    def backward(
        self,
        problem: AttentionProblem,
        out: Array,
        kept: Any,
        dout: Array,
        dlse: Array | None,
        grads: dict[str, Array],
        deterministic: bool,
    ) -> None:
        """Compute the gradients named by the keys of `grads` ("q", "k", "v", "bias", "sinks") into its arrays."""
        ...

    def forward_workspace(self, problem: AttentionProblem, out: Array, lse: Array) -> int:
        """Bytes of device memory that `forward` needs besides, if it keeps nothing; none of the arrays is read."""
        ...

    def backward_workspace(
        self,
        problem: AttentionProblem,
        out: Array,
        kept: Any,
        dout: Array,
        dlse: Array | None,
        grads: dict[str, Array],
        deterministic: bool,
    ) -> int:
        """Bytes of device memory that `backward` needs besides; none of the arrays is read."""
        ...

    def merge(self, parts: list[Array], logs: list[Array], target: Array, lse: Array) -> None:
        """Combine outputs and lse of disjoint sets of keys."""
        ...

    def pooled_scores(self, problem: AttentionProblem, block_size: tuple[int, int], target: Array) -> None:
        """Compute scores of mean rows by mean rows into `target` (..., H, nq, nk)."""
        ...

    def block_mass(self, problem: AttentionProblem, block_size: tuple[int, int], target: Array) -> None:
        """Compute softmax weights, summed over a block's keys and averaged over its rows, into `target`, likewise."""
        ...

    def explain(self, problem: AttentionProblem) -> Explanation: ...

    def warmup(self, problem: AttentionProblem, backward: bool) -> None:
        """Compile and check what a forward needs, and where `backward` says so what a backward needs."""
        ...


def serving(device: str) -> Backend:
    return _package("cpu" if device == HOST else "cuda")


@functools.cache
def _package(name: str) -> Any:
    # Not imported above: who has no arrays on a GPU never loads flashcupy.cuda.
    return importlib.import_module(f"flashcupy.{name}")
