"""flashcupy on arrays of the GPU's array module."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import flashcupy
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.gpu.reference import checked_rows
from bench.harness import OURS, OURS_DETERMINISTIC, Call

if TYPE_CHECKING:
    from flashcupy.cuda.config_sm80_bwd import Kernel


def candidates() -> list[Candidate]:
    return [Candidate(OURS, prepare)]


def deterministic() -> list[Candidate]:
    """Return the backward that gives the same bits in every run."""
    return [Candidate(OURS_DETERMINISTIC, prepare_deterministic)]


def prepare_deterministic(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare flashcupy's backward with ``deterministic=True``."""
    if problem.direction == "forward":
        raise UnavailableError("differs in the backward only")
    return prepare(problem, operands, gpu, deterministic=True)


def prepare(problem: Problem, operands: Operands, gpu: Gpu, *, deterministic: bool = False) -> Prepared:
    """Prepare flashcupy's call."""
    arguments = dict(operands.arguments)
    if problem.pattern is not None:
        arguments["block_mask"] = block_mask(problem, gpu)
    q, k, v, dout = operands.q, operands.k, operands.v, operands.dout
    if problem.sequences:
        return _packed(problem, [x[0] for x in (q, k, v, dout)], arguments, gpu, deterministic)
    if problem.direction == "forward":
        return Prepared(
            lambda: flashcupy.attention(q, k, v, **arguments),
            lambda out: {"out": out[-1, -1]},
            peak=gpu.peak_bytes,
            capture=gpu.capture,
            kernel=flashcupy.explain(q, k, v, **arguments).config,
        )

    def backward(residuals: flashcupy.AttentionResiduals) -> flashcupy.AttentionGrads:
        return flashcupy.attention_bwd(dout, residuals, deterministic=deterministic)

    def forward() -> flashcupy.AttentionResiduals:
        return flashcupy.attention_fwd(q, k, v, **arguments)[1]

    return Prepared(
        _backward_call(problem, forward, backward),
        lambda grads: {f"d{name}": getattr(grads, f"d{name}")[-1, -1] for name in "qkv"},
        peak=gpu.peak_bytes,
        capture=gpu.capture,
        kernel=kernels(problem, flashcupy.explain(q, k, v, **arguments), gpu, deterministic=deterministic),
    )


def _backward_call(problem: Problem, forward: Callable[[], Any], backward: Callable[[Any], Any]) -> Call:
    """Return the backward of one forward, or both."""
    if problem.direction == "forward + backward":
        return lambda: backward(forward())
    return partial(backward, forward())


def kernels(problem: Problem, told: flashcupy.Explanation, gpu: Gpu, *, deterministic: bool) -> str:
    """Return the kernels with products that serve a backward; nothing where another family or backend does."""
    if told.backend != "cuda" or _backward_family(told) != "sm80":
        return ""
    from flashcupy.cuda.bwd_sm80 import adds_queries
    from flashcupy.cuda.device import runtime
    from flashcupy.cuda.table_sm80_bwd import gradient_config

    together = adds_queries(told.spec) and not deterministic
    names: tuple[Kernel, ...] = ("dkvq",) if together else ("dkv", "dq")
    shared_memory = runtime().device(int(gpu.name.removeprefix("cuda:"))).properties.shared_memory
    found = [gradient_config(told.spec, name, shared_memory).name for name in names]
    return " + ".join([told.config] * (problem.direction == "forward + backward") + found)


def _backward_family(told: flashcupy.Explanation) -> str:
    """Return what `Explanation.reason` says, which names the backward's family where it is not the forward's."""
    own = re.search(r"backward by family (\w+)", told.reason) or re.search(r"fwd_([a-z0-9]+)", told.config)
    return own[1] if own else ""


def _packed(problem: Problem, arrays: list[Any], arguments: dict[str, Any], gpu: Gpu, deterministic: bool) -> Prepared:
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

    def backward(residuals: flashcupy.AttentionResiduals) -> flashcupy.AttentionGrads:
        return flashcupy.attention_varlen_bwd(dout, residuals, deterministic=deterministic)

    return Prepared(
        _backward_call(problem, lambda: flashcupy.attention_varlen_fwd(*packed, **arguments)[1], backward),
        lambda grads: {f"d{name}": getattr(grads, f"d{name}")[-1, rows] for name in "qkv"},
        peak=gpu.peak_bytes,
    )


def block_mask(problem: Problem, gpu: Gpu) -> flashcupy.BlockMask:
    """Return the mask where the operands are."""
    assert problem.pattern is not None
    return problem.pattern.block_mask(problem.q_length, problem.kv_length).to_device(gpu.name)
