"""The model of bench/budget.py for a whole problem: which tiles it visits, and the clocks that they take."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bench import budget, budget_bwd
from bench.gpu.options import OPTIONS, kv_lengths
from bench.gpu.problem import Problem

_KERNEL = re.compile(
    r"fwd_sm80_(f16|bf16|tf32|split_tf32)_o(\d+)k(\d+)_d(\d+)v(\d+)_w(\d+)s\d+b\d+_band((?:_(?:softcap|bias|alibi|mask|dropout))*)"
)
_GRADIENT = re.compile(
    r"(dkvq|dkv|dq)_sm80_(f16|bf16|tf32|split_tf32)_o(\d+)k(\d+)_d(\d+)c(\d+)v(\d+)c(\d+)_w(\d+)s\d+b\d+_band"
)
FAR = 1 << 30


@dataclass(frozen=True)
class Ran:
    """The tiles of a kernel, read from its name; implements `bench.budget.Tiles`."""

    kind: budget.Kind
    owner: int
    walk: int
    head_dim: int
    v_dim: int
    warps: int
    features: tuple[str, ...] = ()


def ran(kernel: str) -> Ran | None:
    """Read a kernel's name; None where it is not of the tensor-core family, or walks lists."""
    match = _KERNEL.fullmatch(kernel)
    if match is None:
        return None
    kind, *numbers, features = match.groups()
    owner, walk, head_dim, v_dim, warps = map(int, numbers)
    return Ran(cast(budget.Kind, kind), owner, walk, head_dim, v_dim, warps, tuple(features.split("_")[1:]))


@dataclass(frozen=True)
class RanBackward:
    """The tiles of a kernel of gradients, read from its name; implements `bench.budget_bwd.GradientTiles`."""

    kernel: budget_bwd.Kernel
    kind: budget.Kind
    owner: int
    walk: int
    head_dim: int
    head_chunk: int
    v_dim: int
    v_chunk: int
    warps: int


def ran_backward(kernel: str) -> RanBackward | None:
    """Read a gradient kernel's name; None where it is not of the tensor-core family, walks lists, or has options."""
    match = _GRADIENT.fullmatch(kernel)
    if match is None:
        return None
    name, kind, *numbers = match.groups()
    return RanBackward(cast(budget_bwd.Kernel, name), cast(budget.Kind, kind), *map(int, numbers))


def predicted_clocks(record: dict[str, Any], kernel: str, gpu: budget.Gpu | None) -> tuple[float, float] | None:
    """Return a problem's clocks in multiprocessors' time, at best and in turn; None where the model has no say.

    `kernel` names one kernel, or several with " + " between them, one after another.
    """
    if gpu is None or record["pattern"] is not None:
        return None
    problem = Problem(**record)
    found = [_clocks(problem, name, gpu) for name in kernel.split(" + ")]
    known = [one for one in found if one is not None]
    return (sum(best for best, _ in known), sum(in_turn for _, in_turn in known)) if len(known) == len(found) else None


def _clocks(problem: Problem, kernel: str, gpu: budget.Gpu) -> tuple[float, float] | None:
    forward, backward = ran(kernel), ran_backward(kernel)
    if forward is not None:
        each = [budget.predict(forward, gpu, forward.features, masked=masked) for masked in (False, True)]
        return _over_tiles(problem, visited(problem, forward.owner, forward.walk), each)
    if backward is None:
        return None
    each = [budget_bwd.predict(backward.kernel, backward, gpu, masked=masked) for masked in (False, True)]
    # The pairs of tiles are the same, whichever owns and whichever walks.
    sides = (backward.owner, backward.walk) if backward.kernel == "dq" else (backward.walk, backward.owner)
    best, in_turn = _over_tiles(problem, visited(problem, *sides), each)
    chunks = budget_bwd.chunks(backward.kernel, backward)
    return chunks * best, chunks * in_turn


def _over_tiles(problem: Problem, tiles: tuple[int, int], each: Sequence[budget.Prediction]) -> tuple[float, float]:
    """Sum over FULL tiles and those with hidden scores."""
    best = sum(count * one.best for count, one in zip(tiles, each, strict=True))
    in_turn = sum(count * one.in_turn for count, one in zip(tiles, each, strict=True))
    return problem.heads * best, problem.heads * in_turn


def visited(problem: Problem, owner: int, walk: int) -> tuple[int, int]:
    """Return the tiles of one head over the whole batch: FULL ones, and those with hidden scores."""
    pairs = [(length, length) for length in problem.sequences]
    if not pairs:
        used = kv_lengths(problem) if "kv_lengths" in problem.options else [problem.kv_length] * problem.batch
        pairs = [(problem.q_length, int(length)) for length in used]
    arguments = OPTIONS["window"].arguments(problem) if "window" in problem.options else {}
    left, right = arguments.get("window", (FAR, FAR))
    counts = [_visited(*pair, left, 0 if problem.causal else right, owner, walk) for pair in pairs]
    return sum(full for full, _ in counts), sum(partial for _, partial in counts)


def _visited(q_length: int, kv_length: int, left: int, right: int, owner: int, walk: int) -> tuple[int, int]:
    first = np.arange(0, q_length, owner) + (kv_length - q_length)
    last = np.minimum(first + owner, kv_length) - 1

    def inside(key: Any) -> Any:
        return np.clip(key, 0, kv_length)

    begin = inside(first - left) // walk
    end = -(-inside(last + right + 1) // walk)
    inner_begin = np.maximum(begin, -(-inside(last - left) // walk))
    inner_end = np.minimum(end, inside(first + right + 1) // walk)
    every = np.maximum(0, end - begin)
    full = np.minimum(every, np.maximum(0, inner_end - inner_begin))
    return int(full.sum()), int((every - full).sum())
