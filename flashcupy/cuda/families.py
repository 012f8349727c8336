"""Kernel families, the preferred first, and which of them can serve a call: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flashcupy.cuda import bwd, fwd
from flashcupy.cuda.plan import Plan, PlanBuilder
from flashcupy.errors import UnsupportedError
from flashcupy.spec import AttentionSpec


class _Forward(Protocol):
    def __call__(self, build: PlanBuilder, *, tails: bool) -> Plan: ...


class _Backward(Protocol):
    def __call__(self, build: PlanBuilder, wanted: Sequence[str], *, tails: bool) -> Plan: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that go together. `why_not` tells why a call is not for them, or None."""

    name: str
    why_not: Callable[[AttentionSpec], str | None]
    forward: _Forward
    backward: _Backward


GENERIC = Family("generic", lambda spec: None, fwd.plan_forward, bwd.plan_backward)

FAMILIES = {family.name: family for family in (GENERIC,)}


def able(spec: AttentionSpec) -> list[str]:
    """Names of the families that can serve a call, the preferred first."""
    names = [name for name, family in FAMILIES.items() if family.why_not(spec) is None]
    if not names:
        reasons = "; ".join(f"{name}: {family.why_not(spec)}" for name, family in FAMILIES.items())
        raise UnsupportedError(f"no CUDA kernel serves this call ({reasons})")
    return names


def choose(spec: AttentionSpec) -> tuple[Family, str]:
    """Return the family that is tried first, and why not those before it."""
    name = able(spec)[0]
    before = list(FAMILIES)[: list(FAMILIES).index(name)]
    passed = "; ".join(f"not {other}: {FAMILIES[other].why_not(spec)}" for other in before)
    return FAMILIES[name], f"family {name}" + (f", {passed}" if passed else ": plain FMA, any dtype and head_dim")
