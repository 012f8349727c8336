"""What a forward launches."""

from __future__ import annotations

from flashcupy.cuda import config_generic, table_sm80
from flashcupy.cuda.config_generic import GenericConfig
from flashcupy.cuda.config_sm80 import MmaConfig
from flashcupy.cuda.elementwise import fill
from flashcupy.cuda.plan import INPUTS, Plan, PlanBuilder
from flashcupy.cuda.poison import poison_queries


def plan_generic(build: PlanBuilder, *, tails: bool) -> Plan:
    """Plan a forward of the generic family; see `_plan`."""
    return _plan(build, config_generic.generic_config(build.spec, "fwd"), 1, tails)


def plan_sm80(build: PlanBuilder, *, tails: bool) -> Plan:
    """Plan a forward of the sm80 family; see `_plan`."""
    kernel = table_sm80.sm80_config(build.spec, build.properties.shared_memory)
    return _plan(build, kernel, kernel.tiles.heads, tails)


def _plan(build: PlanBuilder, kernel: GenericConfig | MmaConfig, heads: int, tails: bool) -> Plan:
    """Plan a forward into ``out``, ``lse`` and, where the layouts have them, ``stats``; a tile is of so many `heads`.

    `tails` says that packed rows may lie in no sequence: they are filled, since no tile writes them.
    """
    spec = build.spec
    if tails:
        fill(build, "out", 0.0)
        fill(build, "lse", -float("inf"), values="sinks")
    work = build.query_work(kernel.tiles.owner // heads, spec.v_dim, kernel.tiles.chunk, heads=heads)
    build.attention(kernel, work, (*INPUTS, "out", "lse", "stats"), lists="lists")
    poison_queries(build, ("out", "lse", "stats"))
    return build.finish()
