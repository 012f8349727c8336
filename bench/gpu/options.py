"""Options of a call that are measured one by one: flashcupy's arguments, and the share of the scores left visible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flashcupy.arrays import bfloat16

if TYPE_CHECKING:
    from bench.gpu.problem import Problem

SOFTCAP = 30.0
DROPOUT = 0.1


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes
    ----------
    arguments
        flashcupy's keyword arguments, arrays in host memory.
    visible_share
        Pairs left visible over all pairs; what is only hidden by values (a mask) counts as visible.
    """

    arguments: Callable[[Problem], dict[str, Any]]
    visible_share: Callable[[Problem], float] = lambda problem: 1.0


def dtype_of(name: str) -> np.dtype:
    """Return the dtype; "bfloat16" is ml_dtypes'."""
    return bfloat16() if name == "bfloat16" else np.dtype(name)


def window_of(problem: Problem) -> tuple[int, int]:
    """Return (left, right): an eighth of the keys on the left."""
    return problem.kv_length // 8, 0


def alibi_slopes(problem: Problem) -> Any:
    """Return the usual slopes, 2^(-8 h / H)."""
    return np.exp2(-8 * np.arange(1, problem.heads + 1) / problem.heads).astype(np.float32)


def kv_lengths(problem: Problem) -> Any:
    """Return full length and half of it in turn."""
    lengths = np.full(problem.batch, problem.kv_length, np.int32)
    lengths[1::2] //= 2
    return lengths


def mask(problem: Problem) -> Any:
    """Return a bool matrix that all heads share, nine tenths True; the first key is visible to every query."""
    visible = np.random.default_rng(1).random((problem.q_length, problem.kv_length), np.float32) < 0.9
    visible[:, 0] = True
    return visible


def bias(problem: Problem) -> Any:
    """Return a matrix that all heads share, of the operands' dtype."""
    shape = (problem.q_length, problem.kv_length)
    return np.random.default_rng(2).standard_normal(shape, np.float32).astype(dtype_of(problem.dtype))


def sinks(problem: Problem) -> Any:
    """Return one logit a head."""
    return np.linspace(-1, 1, problem.heads, dtype=np.float32)


OPTIONS = {
    "window": Option(
        lambda problem: {"window": window_of(problem)},
        lambda problem: min(1.0, (sum(window_of(problem)) + 1) / problem.kv_length),
    ),
    "softcap": Option(lambda problem: {"softcap": SOFTCAP}),
    "alibi": Option(lambda problem: {"alibi_slopes": alibi_slopes(problem)}),
    "bias": Option(lambda problem: {"bias": bias(problem)}),
    "mask": Option(lambda problem: {"mask": mask(problem)}),
    "kv_lengths": Option(
        lambda problem: {"kv_lengths": kv_lengths(problem)},
        lambda problem: float(kv_lengths(problem).mean()) / problem.kv_length,
    ),
    "dropout": Option(lambda problem: {"dropout": DROPOUT, "seed": 1}),
    "sinks": Option(lambda problem: {"sinks": sinks(problem)}),
}
