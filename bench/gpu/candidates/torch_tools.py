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
    capture: Callable[[Callable[[], Call]], Call] | None = None,
) -> Prepared:
    """Prepare `attention` forward, its backward alone through autograd, or both.

    `packed_heads` is for libraries whose own layout is (batch, length, heads, head_dim): they get contiguous copies.
    `capture` gets what prepares the call anew, as the function of that name here does.
    """
    tensors = [to_torch(x) for x in (operands.q, operands.k, operands.v, operands.dout)]
    if packed_heads:
        tensors = [x.transpose(1, 2).contiguous() for x in tensors]
    *inputs, dout = tensors
    peak = peak_bytes if dout.is_cuda else None

    def head(result: Sequence[Any]) -> dict[str, Any]:
        names = ("out",) if problem.direction == "forward" else ("dq", "dk", "dv")
        heads = [x[-1, :, -1] if packed_heads else x[-1, -1] for x in result]
        return {name: from_torch(operands.xp, x) for name, x in zip(names, heads, strict=True)}

    def prepare() -> Call:
        if problem.direction == "forward":
            return _forward(attention, inputs)
        return _backward(attention, inputs, dout, around, alone=problem.direction == "backward")

    return Prepared(prepare(), head, around, peak, None if capture is None else lambda _: capture(prepare))


def _forward(attention: Attention, inputs: Sequence[Any]) -> Call:
    import torch

    def forward() -> Any:
        with torch.no_grad():
            return (attention(*inputs),)

    return forward


def _backward(
    attention: Attention,
    inputs: Sequence[Any],
    dout: Any,
    around: Callable[[], AbstractContextManager[Any]],
    *,
    alone: bool,
) -> Call:
    """Return the backward of one forward, or both. Leaves are new: autograd keeps to the stream of their first use."""
    import torch

    leaves = [x.detach().requires_grad_() for x in inputs]
    if not alone:
        return lambda: torch.autograd.grad(attention(*leaves), leaves, dout)
    with around():
        out = attention(*leaves)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


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


def capture(prepare: Callable[[], Call]) -> Call:
    """Record the call that `prepare` returns in a CUDA graph, and return its replay.

    Autograd runs a backward on the stream that its forward ran on, so all of it happens on the stream of the capture.
    """
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call = prepare()
        call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        call()

    def replay(keep: object = call) -> None:  # what the forward left is the graph's input
        graph.replay()

    return replay
