"""The formula in array calls of the GPU's array module: what one writes without a kernel."""

from __future__ import annotations

from typing import Any

from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError, require_plain
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem

LARGEST_SCORES = 4 << 30  # bytes in float32; several such arrays live at a time


def candidates() -> list[Candidate]:
    return [Candidate("naive CuPy", prepare)]


def prepare(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare the call, in the operands' own dtype."""
    require_plain(problem)
    if problem.heads != problem.kv_heads:
        raise UnavailableError("has no grouped heads")
    if problem.score_bytes > LARGEST_SCORES:
        raise UnavailableError(f"its scores take more than {LARGEST_SCORES >> 30} GiB")
    xp, q, k, v, dout = gpu.xp, operands.q, operands.k, operands.v, operands.dout
    scale = q.dtype.type(problem.head_dim**-0.5)

    def weights() -> Any:
        scores = q @ k.swapaxes(-1, -2) * scale
        if problem.causal:
            scores = xp.where(xp.tri(*scores.shape[-2:], dtype=bool), scores, q.dtype.type(-float("inf")))
        exponentials = xp.exp(scores - scores.max(axis=-1, keepdims=True))
        return exponentials / exponentials.sum(axis=-1, keepdims=True)

    def backward(p: Any) -> tuple[Any, Any, Any]:
        dp = dout @ v.swapaxes(-1, -2)
        ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * scale
        return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ dout

    if problem.direction == "forward":
        return Prepared(lambda: weights() @ v, lambda out: {"out": out[-1, -1]}, peak=gpu.peak_bytes)
    p = weights()

    def both() -> tuple[Any, Any, Any]:
        p = weights()
        _ = p @ v
        return backward(p)

    return Prepared(
        both if problem.direction == "forward + backward" else lambda: backward(p),
        lambda grads: {name: array[-1, -1] for name, array in zip(("dq", "dk", "dv"), grads, strict=True)},
        peak=gpu.peak_bytes,
    )
