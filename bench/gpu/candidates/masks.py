"""Building a block mask on the device, and nothing else: what a call with it gives is checked, not timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import flashcupy
from bench.gpu.candidates.base import Candidate, Prepared, UnavailableError
from bench.gpu.candidates.torch_tools import from_torch, to_torch
from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import OURS
from flashcupy import BlockMask

FROM_BLOCKS = f"{OURS} from_blocks"
WHOLE_STEP = f"{OURS} top-k and forward"


def candidates() -> list[Candidate]:
    """Return top-k of scores by head, the same from bools, with the forward behind it, and what torch has for it."""
    return [
        Candidate(OURS, _ours(_from_topk, forward=False)),
        Candidate(FROM_BLOCKS, _ours(_from_blocks, forward=False)),
        Candidate(WHOLE_STEP, _ours(_from_topk, forward=True)),
        Candidate("torch top-k, BlockMask", prepare_torch),
    ]


def scores_of(problem: Problem) -> tuple[np.ndarray, int]:
    """Scores (heads, block rows, block columns) whose k best are the pattern's blocks, and k."""
    assert problem.pattern is not None
    full, _ = problem.pattern.grids(problem.q_length, problem.kv_length)
    each = full.sum(axis=1)
    if (each != each[0]).any():
        raise UnavailableError("chooses as many blocks in each row")
    noise = np.random.default_rng(0).random((problem.heads, *full.shape), dtype=np.float32)
    return full + noise / 2, int(each[0])


_Build = Callable[[Problem, Gpu, BlockMask], Callable[[], BlockMask]]


def _ours(build: _Build, *, forward: bool) -> Callable[[Problem, Operands, Gpu], Prepared]:
    def prepare(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
        assert problem.pattern is not None
        scores, k = scores_of(problem)
        shape = (problem.q_length, problem.kv_length)
        capacity = scores.shape[0] * scores.shape[1] * k
        mask = BlockMask.empty(
            shape, block_size=problem.pattern.block, heads=problem.heads, capacity=capacity, device=gpu.name
        )
        rewrite = build(problem, gpu, mask)

        def attend(own: BlockMask) -> Any:
            return flashcupy.attention(operands.q, operands.k, operands.v, block_mask=own)

        call = (lambda: attend(rewrite())) if forward else rewrite
        head = (lambda out: {"out": out[-1, -1]}) if forward else (lambda own: {"out": attend(own)[-1, -1]})
        return Prepared(call, head, peak=gpu.peak_bytes, capture=gpu.capture)

    return prepare


def _from_topk(problem: Problem, gpu: Gpu, mask: BlockMask) -> Callable[[], BlockMask]:
    host, k = scores_of(problem)
    scores, shape, (block, _) = gpu.xp.asarray(host), mask.shape[2:], mask.block_size
    return lambda: BlockMask.from_topk(scores, k, shape, block_size=block, out=mask)


def _from_blocks(problem: Problem, gpu: Gpu, mask: BlockMask) -> Callable[[], BlockMask]:
    blocks, shape, (block, _) = gpu.xp.asarray(scores_of(problem)[0] >= 1), mask.shape[2:], mask.block_size
    return lambda: BlockMask.from_blocks(blocks, shape, block_size=block, out=mask)


def prepare_torch(problem: Problem, operands: Operands, gpu: Gpu) -> Prepared:
    """Prepare torch.topk and FlexAttention's BlockMask, which makes its transposed lists too."""
    import torch
    from torch.nn.attention.flex_attention import BlockMask as FlexMask

    from bench.gpu.candidates.torch_flex import compiled_flex

    assert problem.pattern is not None
    block, lengths = problem.pattern.block, (problem.q_length, problem.kv_length)
    host, k = scores_of(problem)
    q, key, value = map(to_torch, (operands.q, operands.k, operands.v))
    scores = torch.from_numpy(host).to(q.device)[None]
    counts = torch.full(scores.shape[:-1], k, dtype=torch.int32, device=q.device)
    none, columns = torch.zeros_like(counts), scores.shape[-1]

    def build() -> Any:
        best = torch.topk(scores, k, dim=-1).indices.sort(dim=-1).values.int()
        indices = torch.nn.functional.pad(best, (0, columns - k))
        return FlexMask.from_kv_blocks(none, indices, counts, indices, BLOCK_SIZE=block, seq_lengths=lengths)

    def head(mask: Any) -> dict[str, Any]:
        torch._dynamo.reset()
        return {"out": from_torch(gpu.xp, compiled_flex()(q, key, value, block_mask=mask)[-1, -1])}

    return Prepared(build, head)
