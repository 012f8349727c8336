"""What a backward of the sm80 family launches."""

from __future__ import annotations

from collections.abc import Sequence

from flashcupy.cuda.bwd import bias_work, finish, targets
from flashcupy.cuda.config import ROWS_PER_BLOCK, row_terms_config
from flashcupy.cuda.config_sm80_bwd import GradientConfig, Kernel, QuerySumsConfig
from flashcupy.cuda.plan import INPUTS, SEQUENCE_OPERANDS, Plan, PlanBuilder, Request
from flashcupy.cuda.table_sm80 import kind_of
from flashcupy.cuda.table_sm80_bwd import adds_queries, gradient_config

_UPSTREAM = ("dout", "row_terms")


def one_pass(request: Request, wanted: Sequence[str], *, deterministic: bool) -> bool:
    """Whether dq comes from the kernel of dk and dv: sums of all its blocks, in any order.

    Where the forward left no statistics, the kernel of dq alone tells which rows saw a key, which dsinks needs.
    """
    keys = "k" in wanted or "v" in wanted
    rows_known = "sinks" not in wanted or "stats" in request.layouts
    return "q" in wanted and keys and not deterministic and rows_known and adds_queries(request.spec)


def plan_sm80(build: PlanBuilder, wanted: Sequence[str], *, tails: bool, deterministic: bool) -> Plan:
    """Plan the gradients `wanted` of "q", "k", "v", "bias", "sinks"; see `one_pass`.

    With `deterministic` no two blocks add to one element. That costs two products more than five, for P and dP again.
    """
    together = one_pass(build.request, wanted, deterministic=deterministic)
    sinks_from_rows = "sinks" in wanted and "stats" in build.layouts
    if "sinks" in wanted:
        build.array("sink_rows", build.spec.lse_shape)
    keys = _config(build, "dkvq" if together else "dkv")
    if together:
        build.segments("dq_parts", keys.tiles.head_dim)
    _rows(build, precise=keys.tiles.precise, sinks=sinks_from_rows)
    if "k" in wanted or "v" in wanted:
        _key_pass(build, keys, wanted, tails)
    if together:
        _sum_queries(build, keys, tails)
    elif "q" in wanted or ("sinks" in wanted and not sinks_from_rows):
        _query_pass(build, wanted, tails, sinks=not sinks_from_rows)
    if "bias" in wanted:
        kernel = _config(build, "dbias")
        work = bias_work(build, kernel.tiles.owner, kernel.tiles.walk)
        build.attention(kernel, work, (*INPUTS, *_UPSTREAM, "dbias"), lists="lists")
    return finish(build, wanted, together=together)


def _config(build: PlanBuilder, kernel: Kernel) -> GradientConfig:
    return gradient_config(build.spec, kernel, build.properties.shared_memory)


def _rows(build: PlanBuilder, *, precise: bool, sinks: bool) -> None:
    spec = build.spec
    build.segments("row_terms", 4 if precise else 3)
    known = "stats" if "stats" in build.layouts else "lse"
    work = build.work(spec.q_len, ROWS_PER_BLOCK, 0, 1, spec.q_heads)
    operands = (*SEQUENCE_OPERANDS, "out", "dout", "dlse", known, "row_terms", "dq_parts")
    build.attention(row_terms_config(precise), work, (*operands, *(("sinks", "sink_rows") if sinks else ())))


def _key_pass(build: PlanBuilder, kernel: GradientConfig, wanted: Sequence[str], tails: bool) -> None:
    spec, tiles = build.spec, kernel.tiles
    names = targets(build, [f"d{name}" for name in "kv" if name in wanted], tails)
    chunks = max(-(-spec.head_dim // tiles.head_chunk), -(-spec.v_dim // tiles.v_chunk))
    work = build.key_work(tiles.owner, chunks, 1)
    build.attention(kernel, work, (*INPUTS, *_UPSTREAM, *names, "dq_parts"), lists="transposed_lists")


def _query_pass(build: PlanBuilder, wanted: Sequence[str], tails: bool, *, sinks: bool) -> None:
    spec = build.spec
    names = targets(build, ("dq",) if "q" in wanted else (), tails)
    kernel = _config(build, "dq")
    tiles, columns = kernel.tiles, spec.head_dim if "q" in wanted else 0
    work = build.query_work(tiles.head_rows, columns, tiles.head_chunk, heads=tiles.heads)
    operands = (*INPUTS, *_UPSTREAM, *names, *(("sink_rows",) if sinks else ()))
    build.attention(kernel, work, operands, lists="lists")


def _sum_queries(build: PlanBuilder, keys: GradientConfig, tails: bool) -> None:
    spec = build.spec
    kernel = QuerySumsConfig(kind_of(spec), keys.tiles.head_dim)
    work = build.work(spec.q_len, kernel.owner, 0, 1, spec.q_heads)
    build.attention(kernel, work, (*SEQUENCE_OPERANDS, "dq_parts", *targets(build, ("dq",), tails)))
