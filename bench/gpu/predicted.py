"""The model of bench/budget.py for a whole problem: which tiles it visits, and the clocks that they take."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from bench import budget
from bench.gpu.options import OPTIONS, kv_lengths
from bench.gpu.problem import Problem

_KERNEL = re.compile(
    r"fwd_sm80_(f16|bf16|tf32|split_tf32)_o(\d+)k(\d+)_d(\d+)v(\d+)_w(\d+)s\d+b\d+_band((?:_(?:softcap|bias|alibi|mask|dropout))*)"
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


def predicted_clocks(record: dict[str, Any], kernel: str, gpu: budget.Gpu | None) -> tuple[float, float] | None:
    """Return a problem's clocks in multiprocessors' time, at best and in turn; None where the model has no say."""
    tiles = ran(kernel)
    if tiles is None or gpu is None or record["pattern"] is not None:
        return None
    problem = Problem(**record)
    full, partial = visited(problem, tiles.owner, tiles.walk)
    found = []
    for way in ("best", "in_turn"):
        each = [getattr(budget.predict(tiles, gpu, tiles.features, masked=masked), way) for masked in (False, True)]
        found.append(problem.heads * (full * each[0] + partial * each[1]))
    return found[0], found[1]


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
