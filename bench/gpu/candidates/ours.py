"""flashcupy on arrays of the GPU's array module."""

from __future__ import annotations

from typing import Any

import numpy as np

import flashcupy
from bench.gpu.candidates.base import Candidate, Prepared
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.gpu.reference import checked_rows
from bench.harness import OURS
from flashcupy.errors import UnsupportedError


def candidates() -> list[Candidate]:
    return [Candidate(OURS, prepare)]


def prepare(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare flashcupy's call."""
    arguments = dict(operands.arguments)
    if problem.pattern is not None:
        arguments["block_mask"] = block_mask(problem, gpu)
    q, k, v, dout = operands.q, operands.k, operands.v, operands.dout
    if problem.sequences:
        return _packed(problem, [x[0] for x in (q, k, v, dout)], arguments, gpu)
    if problem.direction == "forward":
        return Prepared(
            lambda: flashcupy.attention(q, k, v, **arguments),
            lambda out: {"out": out[-1, -1]},
            peak=gpu.peak_bytes,
            capture=gpu.capture,
            kernel=flashcupy.explain(q, k, v, **arguments).config,
        )
    _, residuals = flashcupy.attention_fwd(q, k, v, **arguments)
    return Prepared(
        lambda: flashcupy.attention_bwd(dout, residuals),
        lambda grads: {f"d{name}": getattr(grads, f"d{name}")[-1, -1] for name in "qkv"},
        peak=gpu.peak_bytes,
        capture=gpu.capture,
    )


def _packed(problem: Problem, arrays: list[Any], arguments: dict[str, Any], gpu: Gpu) -> Prepared:
    q, k, v, dout = arrays
    ends = gpu.xp.asarray(np.cumsum([0, *problem.sequences]).astype(np.int32))
    longest = max(problem.sequences)
    packed = (q, k, v, ends, ends)
    arguments |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
    rows = checked_rows(problem)
    if problem.direction == "forward":
        return Prepared(
            lambda: flashcupy.attention_varlen(*packed, **arguments),
            lambda out: {"out": out[-1, rows]},
            peak=gpu.peak_bytes,
        )
    _, residuals = flashcupy.attention_varlen_fwd(*packed, **arguments)
    return Prepared(
        lambda: flashcupy.attention_varlen_bwd(dout, residuals),
        lambda grads: {f"d{name}": getattr(grads, f"d{name}")[-1, rows] for name in "qkv"},
        peak=gpu.peak_bytes,
    )


def block_mask(problem: Problem, gpu: Gpu) -> flashcupy.BlockMask:
    """Return the mask where the operands are, or on the host where masks do not leave it."""
    assert problem.pattern is not None
    mask = problem.pattern.block_mask(problem.q_length, problem.kv_length)
    try:
        return mask.to_device(gpu.name)
    except UnsupportedError:
        return mask
