"""Kernel families, the preferred first, and which of them can serve a call: the one place where that is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from flashcupy.cuda import bwd, fwd
from flashcupy.cuda.fallback import candidates
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
    about: str
    why_not: Callable[[AttentionSpec], str | None]
    forward: _Forward
    backward: _Backward


GENERIC = Family("generic", "plain FMA, any dtype and head_dim", lambda spec: None, fwd.plan_forward, bwd.plan_backward)

FAMILIES = {family.name: family for family in (GENERIC,)}


_only: ContextVar[str | None] = ContextVar("only", default=None)


@contextmanager
def only(name: str) -> Iterator[None]:
    """Serve the calls inside by one family: those of its first-use check."""
    token = _only.set(name)
    try:
        yield
    finally:
        _only.reset(token)


def forced() -> str | None:
    """The family of `only`, if the caller is inside one."""
    return _only.get()


def able(spec: AttentionSpec) -> list[str]:
    """Names of the families that can serve a call, the preferred first; inside `only` that one."""
    name = forced()
    considered = FAMILIES if name is None else {name: FAMILIES[name]}
    names = [name for name, family in considered.items() if family.why_not(spec) is None]
    if not names:
        reasons = "; ".join(f"{name}: {family.why_not(spec)}" for name, family in considered.items())
        raise UnsupportedError(f"no CUDA kernel serves this call ({reasons})")
    return names


def to_try(spec: AttentionSpec) -> list[str]:
    """Names of the families to try one after the other: those that are able to, or what the environment asks for.

    Raises
    ------
    UnsupportedError
        If there are none.
    ValueError
        If FLASHCUPY_FAMILY or FLASHCUPY_FALLBACK has a wrong value.
    """
    names = able(spec)
    return names if forced() else list(candidates(names))


def choose(spec: AttentionSpec) -> tuple[Family, str]:
    """Return the family that is tried first, and why it is; raises as `to_try` does."""
    first = to_try(spec)[0]
    family = FAMILIES[first]
    passed = []
    for name, other in FAMILIES.items():
        if name == first:
            break
        passed.append(f"not {name}: {other.why_not(spec) or 'FLASHCUPY_FAMILY asks for another'}")
    return family, "; ".join((f"family {first}: {family.about}", *passed))
