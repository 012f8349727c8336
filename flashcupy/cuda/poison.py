"""NaN where a mask of fixed capacity had no room for all blocks: the kernels that come behind those of a call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from flashcupy.cuda import config
from flashcupy.cuda.elementwise import blocks
from flashcupy.cuda.plan import SEQUENCE_OPERANDS, PlanBuilder, Work

_MOST_BLOCKS = 4096  # the kernels stride over what is left


def poison_queries(build: PlanBuilder, operands: Sequence[str], *, whole_heads: bool = False) -> None:
    """Mark query rows of results. `whole_heads` is for what blocks of keys have added up."""
    _poison(build, "QueryHeads" if whole_heads else "QueryRows", operands)


def poison_gradients(build: PlanBuilder, wanted: Sequence[str], *, together: bool) -> None:
    """Mark what a backward has computed; with `together` dq came from the kernel of dk and dv."""
    rows = [name for name, wish in (("dq", "q"), ("sink_rows", "sinks")) if wish in wanted]
    if together:
        poison_queries(build, ["dq"], whole_heads=True)
        rows.remove("dq")
    if rows:
        poison_queries(build, rows)
    keys = [f"d{name}" for name in "kv" if name in wanted]
    if keys:
        _poison(build, "KeyRows", keys)
    if "bias" in wanted and _may_overflow(build):
        extents, *others = build.dbias_extents()
        work = Work(blocks(math.prod((*extents, *others)), config.POISON_BIAS.threads), 1)
        build.attention(config.POISON_BIAS, work, ("dbias",), lists="lists")


def _poison(build: PlanBuilder, side: Literal["QueryRows", "QueryHeads", "KeyRows"], operands: Sequence[str]) -> None:
    if not _may_overflow(build):
        return
    assert build.mask is not None
    spec, keys = build.spec, side == "KeyRows"
    heads, rows = (spec.kv_heads, build.mask.columns) if keys else (spec.q_heads, build.mask.rows)
    work = Work(min(rows * heads * spec.batch_size, _MOST_BLOCKS), 1)
    lists = "transposed_lists" if keys else "lists"
    build.attention(config.poison_config(side), work, (*SEQUENCE_OPERANDS, *operands), lists=lists)


def _may_overflow(build: PlanBuilder) -> bool:
    return build.mask is not None and build.mask.may_overflow
