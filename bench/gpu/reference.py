"""What the checked head of a problem has to give, in float64 on the device, a few query rows at a time.

The checked head is the last of the last batch, or of the last packed sequence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.gpu.operands import Operands, widen
from bench.gpu.problem import Problem

ROWS = 1024

UNCHECKED = frozenset({"dropout"})  # the peers draw other bits


def checked_rows(problem: Problem) -> slice:
    """Return the rows of the checked sequence."""
    return slice(problem.q_length - problem.sequences[-1], problem.q_length) if problem.sequences else slice(None)


def expected(problem: Problem, operands: Operands) -> dict[str, Any] | None:
    """Return the tensors of the checked head by name; dk and dv are summed over the heads that share them.

    None for what no candidate can be held to.
    """
    if UNCHECKED & set(problem.options):
        return None
    group = problem.heads // problem.kv_heads
    heads = [_Head(problem, operands, problem.heads - group + i) for i in range(group)]
    if problem.direction == "forward":
        return {"out": heads[-1].forward()}
    parts = [head.backward() for head in heads]
    return {"dq": parts[-1][0], "dk": sum(part[1] for part in parts), "dv": sum(part[2] for part in parts)}


@dataclass(frozen=True)
class _Head:
    problem: Problem
    operands: Operands
    head: int

    def _operand(self, name: str) -> Any:
        """Return one operand of the head, cut to the checked sequence or to the used keys."""
        array = getattr(self.operands, name)
        rows = checked_rows(self.problem)
        if name in "kv":
            lengths = self.operands.arguments.get("kv_lengths")
            rows = rows if lengths is None else slice(0, int(lengths[-1]))
            return widen(self.operands.xp, array[-1, self.head * array.shape[1] // self.problem.heads, rows])
        return widen(self.operands.xp, array[-1, self.head, rows])

    def forward(self) -> Any:
        xp, v = self.operands.xp, self._operand("v")
        return xp.concatenate([p @ v for _, p, _ in self._tiles()])

    def backward(self) -> tuple[Any, Any, Any]:
        xp = self.operands.xp
        q, k, v, dout = (self._operand(name) for name in ("q", "k", "v", "dout"))
        dq, dk, dv = xp.zeros_like(q), xp.zeros_like(k), xp.zeros_like(v)
        for rows, p, slope in self._tiles():
            dp = dout[rows] @ v.T
            ds = p * (dp - (p * dp).sum(axis=-1, keepdims=True)) * slope * q.shape[-1] ** -0.5
            dq[rows] = ds @ k
            dk += ds.T @ q[rows]
            dv += p.T @ dout[rows]
        return dq, dk, dv

    def _tiles(self) -> Iterator[tuple[slice, Any, Any]]:
        """Yield row range, softmax P, and the derivative of the softcap, for some rows at a time."""
        xp, arguments = self.operands.xp, self.operands.arguments
        q, k = self._operand("q"), self._operand("k")
        for start in range(0, len(q), ROWS):
            rows = slice(start, min(start + ROWS, len(q)))
            i, j = xp.arange(rows.start, rows.stop), xp.arange(len(k))
            scores, slope = q[rows] @ k.T * q.shape[-1] ** -0.5, 1.0
            if (cap := arguments.get("softcap")) is not None:
                scores = cap * xp.tanh(scores / cap)
                slope = 1 - (scores / cap) ** 2
            if (slopes := arguments.get("alibi_slopes")) is not None:
                scores = scores - widen(xp, slopes)[self.head] * abs(i[:, None] + len(k) - len(q) - j)
            if (bias := arguments.get("bias")) is not None:
                scores = scores + widen(xp, bias[rows])
            scores = xp.where(self._visible(i, j, len(q), len(k)), scores, -xp.inf)
            peak = scores.max(axis=-1, keepdims=True)
            weights = xp.exp(scores - peak)
            total = weights.sum(axis=-1, keepdims=True)
            if (sinks := arguments.get("sinks")) is not None:
                total = total + xp.exp(widen(xp, sinks)[self.head] - peak)
            yield rows, weights / total, slope

    def _visible(self, i: Any, j: Any, q_length: int, kv_length: int) -> Any:
        xp, arguments = self.operands.xp, self.operands.arguments
        distance = i[:, None] + (kv_length - q_length) - j
        visible = distance >= 0 if self.problem.causal else xp.ones(distance.shape, bool)
        if (window := arguments.get("window")) is not None:
            visible &= (distance <= window[0]) & (distance >= -window[1])
        if (mask := arguments.get("mask")) is not None:
            visible &= mask[i]
        if self.problem.pattern is not None:
            visible &= self.problem.pattern.visible(i, j, kv_length, xp)
        return visible
