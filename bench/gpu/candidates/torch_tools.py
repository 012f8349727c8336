"""What the candidates that live in torch share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from bench.gpu.candidates.base import Prepared
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import Call

Attention = Callable[..., Any]  # (q, k, v) -> out, tensors of shape (batch, heads, length, head_dim)


def to_torch(array: Any) -> Any:
    """View an array of NumPy or CuPy as a tensor; bfloat16 crosses as integers."""
    import torch

    if str(array.dtype) == "bfloat16":
        return torch.from_dlpack(array.view("int16")).view(torch.bfloat16)
    return torch.from_dlpack(array)


def from_torch(xp: Any, tensor: Any) -> Any:
    """Copy a tensor to an array, widened where the array module might not know its dtype."""
    return xp.from_dlpack(tensor.detach().double().contiguous())


def prepare_call(
    problem: Problem,
    operands: Operands,
    attention: Attention,
    *,
    packed_heads: bool = False,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
    capture: Callable[[Call], Call] | None = None,
) -> Prepared:
    """Prepare `attention` forward, its backward alone through autograd, or both.

    `packed_heads` is for libraries whose own layout is (batch, length, heads, head_dim): they get contiguous copies.
    """
    import torch

    tensors = [to_torch(x) for x in (operands.q, operands.k, operands.v, operands.dout)]
    if packed_heads:
        tensors = [x.transpose(1, 2).contiguous() for x in tensors]
    *inputs, dout = tensors
    peak = peak_bytes if dout.is_cuda else None

    def head(result: Sequence[Any]) -> dict[str, Any]:
        names = ("out",) if problem.direction == "forward" else ("dq", "dk", "dv")
        heads = [x[-1, :, -1] if packed_heads else x[-1, -1] for x in result]
        return {name: from_torch(operands.xp, x) for name, x in zip(names, heads, strict=True)}

    if problem.direction == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return (attention(*inputs),)

        return Prepared(forward, head, around, peak, capture)

    inputs = [x.detach().requires_grad_() for x in inputs]
    if problem.direction == "forward + backward":

        def both() -> Any:
            return torch.autograd.grad(attention(*inputs), inputs, dout)

        return Prepared(both, head, around, peak, capture)
    with around():
        out = attention(*inputs)
    return Prepared(lambda: torch.autograd.grad(out, inputs, dout, retain_graph=True), head, around, peak, capture)


def peak_bytes(call: Call) -> int:
    """Return the most bytes that torch's allocator held during a call, beyond what stood before."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def capture(call: Call) -> Call:
    """Record a call in a CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
