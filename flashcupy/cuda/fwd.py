"""What a forward launches."""

from __future__ import annotations

from flashcupy.cuda import config
from flashcupy.cuda.elementwise import fill
from flashcupy.cuda.plan import INPUTS, Plan, PlanBuilder


def plan_forward(build: PlanBuilder, *, tails: bool) -> Plan:
    """Plan a forward into ``out``, ``lse`` and, where the layouts have them, ``stats``.

    `tails` says that packed rows may lie in no sequence: they are filled, since no tile writes them.
    """
    spec = build.spec
    if tails:
        fill(build, "out", 0.0)
        fill(build, "lse", -float("inf"), values="sinks")
    kernel = config.generic_config(spec, "fwd")
    work = build.work(spec.q_len, kernel.tiles.owner, spec.v_dim, kernel.tiles.chunk, spec.q_heads)
    build.attention(kernel, work, (*INPUTS, "out", "lse", "stats"), lists="lists")
    return build.finish()
