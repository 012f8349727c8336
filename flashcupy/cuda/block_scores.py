"""Scores of blocks on the device: what each of the two calls launches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flashcupy.arrays import accumulator
from flashcupy.cuda import config, families, serve, verdicts
from flashcupy.cuda.calls import Call
from flashcupy.cuda.config_scores import Scoring, means_config, scores_config
from flashcupy.cuda.elementwise import blocks, extents
from flashcupy.cuda.first_use_scores import ScoresCase
from flashcupy.cuda.launch import PlanCache, ReadyPlan, prepare
from flashcupy.cuda.params import AttentionParams, BlockMassParams, BlockMeansParams, Operand
from flashcupy.cuda.plan import INPUTS, Plan, PlanBuilder
from flashcupy.errors import NotWarmedUpError
from flashcupy.spec import AttentionProblem

Array = Any

_plans = PlanCache()
_COARSEST = 128  # larger blocks are multiples of it


def pooled_scores(problem: AttentionProblem, block_size: tuple[int, int], target: Array) -> None:
    """Compute scores of means by means; see `flashcupy.backend.Backend`."""
    if target.size:
        _run("pooled_scores", problem, block_size, {"scores": target}, _plan_pooled)


def block_mass(problem: AttentionProblem, block_size: tuple[int, int], target: Array) -> None:
    """Compute the mass of blocks, a forward without values before; see `flashcupy.backend.Backend`."""
    if target.size == 0:
        return
    spec, device = problem.spec, Call(problem).device
    acc = accumulator(spec.dtype)
    with device.scope(), _asking_for_a_call("block_mass"):
        out, lse = device.empty(spec.out_shape(0), acc), device.empty(spec.lse_shape, acc)
        # A weight comes right only from the very score that the forward summed, and those below are of plain FMA. In 16
        # bits the contract has room for the difference by far, and tensor cores are faster.
        family = None if spec.dtype in ("float16", "bfloat16") else families.GENERIC.name
        kept = serve.forward(problem, out, lse, keep=True, family=family)
        assert kept is not None
        _run("block_mass", problem, block_size, {"stats": kept.stats, "scores": target}, _plan_mass)


def _run(
    kernel: Scoring,
    problem: AttentionProblem,
    block_size: tuple[int, int],
    arrays: dict[str, Array],
    make: Callable[[PlanBuilder, tuple[int, int]], Plan],
) -> None:
    call, spec = Call(problem), problem.spec
    with call.device.scope(), _asking_for_a_call(kernel):
        for slot, array in arrays.items():
            call.add(slot, array)

        def first() -> ReadyPlan:
            case = ScoresCase(kernel, spec.dtype, spec.head_dim, config.features(spec))
            check = functools.partial(case.begin, call.device)
            sizes = _within(block_size[0], spec.q_len), _within(block_size[1], spec.kv_len)
            return prepare(call.device, make(call.builder(), sizes), call.host, config.accumulator(spec), check)

        # What a check makes is for the check alone: its kernels may prove wrong.
        ready = first() if verdicts.is_checking() else _plans.get((kernel, block_size, *call.key), first)
        call.run(ready)


@contextmanager
def _asking_for_a_call(name: str) -> Iterator[None]:
    """There is no warmup of these calls but a call."""
    try:
        yield
    except NotWarmedUpError as error:
        raise NotWarmedUpError(
            f"a kernel of flashcupy.{name} is used for the first time while a CUDA graph is captured: call it with "
            "arrays like these before the capture"
        ) from error


def _within(block: int, length: int) -> int:
    """A block size that cuts a sequence in the same way, and that kernels' coordinates can hold."""
    return block if block < _COARSEST else min(block, -(-length // _COARSEST) * _COARSEST)


def _plan_mass(build: PlanBuilder, block_size: tuple[int, int]) -> Plan:
    """Plan the mass of blocks into ``scores``, of rows with ``stats``."""
    spec, (block_q, block_k) = build.spec, block_size
    kernel = scores_config(spec, "block_mass")
    attention, slots = build.attention_params((*INPUTS, "stats"))
    rows, columns = max(block_q, kernel.tiles.owner), max(block_k, kernel.tiles.walk)
    work = build.work(spec.q_len, rows, spec.kv_len, columns, spec.q_heads)
    attention.chunks = work.chunks
    mass = build.batch.operand(build.layouts["scores"])
    params = BlockMassParams(attention=attention, mass=mass, block_q=block_q, block_k=block_k)
    slots = [(BlockMassParams.attention.offset + offset, slot) for offset, slot in slots]
    slots.append((BlockMassParams.mass.offset + Operand.data.offset, "scores"))
    build.launch(kernel, work.grid, params, slots)
    return build.finish()


def _plan_pooled(build: PlanBuilder, block_size: tuple[int, int]) -> Plan:
    """Plan the means of q and of k, and their product into ``scores``."""
    spec = build.spec
    nq, nk = (_means(build, name, block) for name, block in zip("qk", block_size, strict=True))
    kernel = scores_config(spec, "pooled_scores")
    work = build.work(nq, kernel.tiles.owner, nk, kernel.tiles.walk, spec.q_heads)
    params, slots = build.attention_params(())
    for name, slot in (("q", "q_means"), ("k", "k_means"), ("out", "scores")):
        setattr(params, name, build.batch.operand(build.layouts[slot]))
        slots.append((getattr(AttentionParams, name).offset + Operand.data.offset, slot))
    params.q_len = params.q_rows = nq
    params.kv_len = params.kv_rows = nk
    params.chunks = work.chunks
    build.launch(kernel, work.grid, params, slots)
    return build.finish()


def _means(build: PlanBuilder, name: str, block: int) -> int:
    """Launch the means of an operand, into a temporary array; return how many blocks there are."""
    layout, target = build.layouts[name], f"{name}_means"
    *lead, rows, columns = layout.shape
    count = -(-rows // block)
    build.array(target, (*lead, count, columns))
    params = BlockMeansParams(
        source=build.batch.operand(layout),
        target=build.batch.operand(build.layouts[target]),
        extents=extents(build, build.layouts[target]),
        rows=rows,
        block=block,
    )
    slots = [
        (BlockMeansParams.source.offset + Operand.data.offset, name),
        (BlockMeansParams.target.offset + Operand.data.offset, target),
    ]
    kernel = means_config(config.accumulator(build.spec))
    build.launch(kernel, blocks(math.prod(build.layouts[target].shape), kernel.threads), params, slots)
    return count
