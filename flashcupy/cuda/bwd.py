"""What a backward of the generic family launches: row statistics, dq, dk and dv, dbias, sums over what broadcasts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flashcupy.cuda import config, config_generic
from flashcupy.cuda.elementwise import fill, sum_batch
from flashcupy.cuda.params import Operand, SumSinksParams
from flashcupy.cuda.plan import INPUTS, SEQUENCE_OPERANDS, Plan, PlanBuilder, Work
from flashcupy.cuda.poison import poison_gradients

_UPSTREAM = ("dout", "stats", "delta")


def plan_generic(build: PlanBuilder, wanted: Sequence[str], *, tails: bool, deterministic: bool) -> Plan:
    """Plan the gradients `wanted` of "q", "k", "v", "bias", "sinks". ``stats``, if not given, follow from ``lse``.

    Deterministic whether asked to or not: no two blocks add to one element.
    """
    _rows(build)
    if "q" in wanted or "sinks" in wanted:
        _query_pass(build, wanted, tails)
    if "k" in wanted or "v" in wanted:
        _key_pass(build, wanted, tails)
    if "bias" in wanted:
        _bias_pass(build)
    return finish(build, wanted)


def finish(build: PlanBuilder, wanted: Sequence[str], *, together: bool = False) -> Plan:
    """Add what all families end with: sums over batch dims that an operand broadcasts over, over rows for dsinks.

    `together` says that dq came from the kernel of dk and dv.
    """
    poison_gradients(build, wanted, together=together)
    for name in ("dq", "dk", "dv"):
        if f"{name}_sum" in build.layouts:
            sum_batch(build, f"{name}_sum", name)
    if "sinks" in wanted:
        _sum_sinks(build)
    return build.finish()


def _rows(build: PlanBuilder) -> None:
    spec = build.spec
    from_lse = "stats" not in build.layouts
    if from_lse:
        build.array("stats", (*spec.lse_shape, 2))
    build.array("delta", spec.lse_shape)
    work = build.work(spec.q_len, config.ROWS_PER_BLOCK, 0, 1, spec.q_heads)
    operands = (*SEQUENCE_OPERANDS, "out", "dout", "dlse", "delta", "stats", *(("lse",) if from_lse else ()))
    build.attention(config.rows_config(config.accumulator(spec)), work, operands)


def _query_pass(build: PlanBuilder, wanted: Sequence[str], tails: bool) -> None:
    spec = build.spec
    names = targets(build, ("dq",) if "q" in wanted else (), tails)
    if "sinks" in wanted:
        build.array("sink_rows", spec.lse_shape)
    kernel = config_generic.generic_config(spec, "dq")
    columns = spec.head_dim if "q" in wanted else 0
    work = build.query_work(kernel.tiles.owner, columns, kernel.tiles.chunk)
    build.attention(kernel, work, (*INPUTS, *_UPSTREAM, *names, "sink_rows"), lists="lists")


def _key_pass(build: PlanBuilder, wanted: Sequence[str], tails: bool) -> None:
    spec = build.spec
    names = targets(build, [f"d{name}" for name in "kv" if name in wanted], tails)
    kernel = config_generic.generic_config(spec, "dkv")
    columns = max(dim for name, dim in (("k", spec.head_dim), ("v", spec.v_dim)) if name in wanted)
    work = build.key_work(kernel.tiles.owner, columns, kernel.tiles.chunk)
    build.attention(kernel, work, (*INPUTS, *_UPSTREAM, *names), lists="transposed_lists")


def _bias_pass(build: PlanBuilder) -> None:
    kernel = config_generic.generic_config(build.spec, "dbias")
    work = bias_work(build, kernel.tiles.owner, kernel.tiles.walk)
    build.attention(kernel, work, (*INPUTS, *_UPSTREAM, "dbias"), lists="lists")


def bias_work(build: PlanBuilder, rows_each: int, columns_each: int) -> Work:
    """Blocks that own a tile of the bias."""
    extents, heads, rows, columns = build.dbias_extents()
    return Work(math.prod(extents) * heads * -(-rows // rows_each) * -(-columns // columns_each), 1)


def targets(build: PlanBuilder, names: Sequence[str], tails: bool) -> tuple[str, ...]:
    """Prepare where gradients go: rows in no sequence are zeroed, and what broadcasts over the batch gets a buffer."""
    for name in names:
        layout = build.layouts[name]
        if tails:
            fill(build, name, 0.0)
        if not build.spec.varlen and build.batch.extents_of(layout) != build.batch.extents:
            shape = layout.shape if len(layout.shape) > 2 else (1, *layout.shape)
            build.array(f"{name}_sum", (*build.spec.batch, *shape[-3:]))
    return tuple(names)


def _sum_sinks(build: PlanBuilder) -> None:
    attention, slots = build.attention_params((*SEQUENCE_OPERANDS, "sink_rows"))
    params = SumSinksParams(attention=attention, dsinks=build.batch.operand(build.layouts["dsinks"]))
    slots = [(SumSinksParams.attention.offset + offset, slot) for offset, slot in slots]
    slots.append((SumSinksParams.dsinks.offset + Operand.data.offset, "dsinks"))
    build.launch(config.SUM_SINKS, build.spec.q_heads, params, slots)
