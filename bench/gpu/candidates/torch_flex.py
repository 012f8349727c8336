"""torch's FlexAttention, compiled: score functions and block masks."""

from __future__ import annotations

import functools
from typing import Any

from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError, require_plain
from bench.gpu.candidates.torch_tools import capture, prepare_call, to_torch
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.options import SOFTCAP, window_of
from bench.gpu.pattern import Grid
from bench.gpu.problem import Problem


def candidates() -> list[Candidate]:
    return [Candidate("torch flex", prepare)]


def prepare(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare FlexAttention with the problem's block mask and score function."""
    require_plain(problem, "window", "softcap", "alibi", "pattern")
    if problem.dtype == "float64":
        raise UnavailableError("takes no float64")
    if problem.direction != "forward" and not hasattr(gpu.xp, "cuda"):
        raise UnavailableError("has no backward on the CPU")
    import torch

    q = to_torch(operands.q)
    mask = block_mask(problem, q.device)
    score = score_function(problem, operands)
    compiled = compiled_flex()

    def attention(q: Any, k: Any, v: Any) -> Any:
        gqa = problem.heads != problem.kv_heads
        return compiled(q, k, v, score_mod=score, block_mask=mask, enable_gqa=gqa)

    # Shapes differ from row to row: compile each anew, and never a slower one for any shape.
    torch._dynamo.reset()
    return prepare_call(problem, operands, attention, capture=capture)


@functools.cache
def compiled_flex() -> Any:
    """Return the compiled function; compiling happens at its first call for a shape."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def score_function(problem: Problem, operands: Operands) -> Any:
    """Return softcap or ALiBi as a score function; None for neither."""
    import torch

    if "softcap" in problem.options:
        return lambda score, b, h, i, j: SOFTCAP * torch.tanh(score / SOFTCAP)
    if "alibi" in problem.options:
        slopes = to_torch(operands.arguments["alibi_slopes"])
        return lambda score, b, h, i, j: score - slopes[h] * (i - j).abs()
    return None


def block_mask(problem: Problem, device: Any) -> Any:
    """Return the BlockMask: by predicate for causal and window, out of our lists for a pattern; None for neither."""
    from torch.nn.attention.flex_attention import create_block_mask

    lengths = (problem.q_length, problem.kv_length)
    if problem.pattern is not None:
        return of_lists(problem, device)
    if "window" in problem.options:
        return create_block_mask(_window(window_of(problem)[0]), None, None, *lengths, device=device)
    if problem.causal:
        return create_block_mask(lambda b, h, i, j: i >= j, None, None, *lengths, device=device)
    return None


def of_lists(problem: Problem, device: Any) -> Any:
    """Return the same blocks that flashcupy visits, FULL and PARTIAL."""
    from torch.nn.attention.flex_attention import BlockMask

    pattern, lengths = problem.pattern, (problem.q_length, problem.kv_length)
    assert pattern is not None
    full, partial = pattern.grids(*lengths)
    predicate = _window(pattern.left(problem.kv_length)) if pattern.kind == "window" else None
    lists = [*_lists(partial, device), *_lists(full, device)]
    return BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=pattern.block, mask_mod=predicate, seq_lengths=lengths)


def _lists(grid: Grid, device: Any) -> tuple[Any, Any]:
    """Counts (1, 1, rows), and indices (1, 1, rows, columns) with the visited columns first."""
    import torch

    visited = torch.from_numpy(grid).to(device).int()
    order = torch.argsort(visited, dim=-1, descending=True, stable=True)
    return visited.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


def _window(left: int) -> Any:
    return lambda b, h, i, j: (i >= j) & (i - j <= left)
