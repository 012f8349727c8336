"""Kernel families, the preferred first, and which of them can serve a call: the one place where that is decided.

What a forward keeps is the same in all, so that the backward of another one may follow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

from flashcupy.cuda import bwd, bwd_sm80, fwd
from flashcupy.cuda.fallback import candidates
from flashcupy.cuda.plan import Plan, PlanBuilder, Request
from flashcupy.cuda.table_sm80 import BUCKETS, FAST_TF32, LEAST_SHARED
from flashcupy.cuda.table_sm80_bwd import WIDEST, WIDEST_SPLIT
from flashcupy.errors import UnsupportedError
from flashcupy.spec import AttentionSpec

Direction = Literal["forward", "backward"]

# Three TF32 products hold about 22 bits of one of float32, which itself rounds to 24. In scores that are sums of a few
# products that is all there is to lose, and more than the error bound has room for. Sums of more lose as much by plain
# float32: in a model of 1000 problems of each head_dim errors are, of 16 columns on, no larger than those of plain FMA.
LEAST_FLOAT32 = 16


class _Forward(Protocol):
    def __call__(self, build: PlanBuilder, *, tails: bool) -> Plan: ...


class _Backward(Protocol):
    def __call__(self, build: PlanBuilder, wanted: Sequence[str], *, tails: bool, deterministic: bool) -> Plan: ...


@dataclass(frozen=True, slots=True)
class Family:
    """Kernels that go together. `why_not` tells why one direction of a call is not for them, or None.

    `precisions` are those that it has kernels of its own for; it serves any.
    """

    name: str
    about: str
    why_not: Callable[[Request, Direction], str | None]
    forward: _Forward
    backward: _Backward
    precisions: tuple[str, ...] = ("highest",)

    def precision(self, spec: AttentionSpec) -> str:
        """The accuracy that its results have."""
        return spec.precision if spec.dtype == "float32" and spec.precision in self.precisions else "highest"


def _why_not_sm80(request: Request, direction: Direction) -> str | None:
    reason = _why_no_tensor_cores(request)
    # A forward of float32 leaves P to the family that computes the same scores, to the last bit.
    follows = direction == "backward" or (request.spec.dtype == "float32" and "stats" in request.layouts)
    return reason if reason or not follows else _why_no_gradients(request)


def _why_no_gradients(request: Request) -> str | None:
    spec = request.spec
    if spec.v_dim > WIDEST:
        return f"takes v of at most {WIDEST} columns in a backward, this one has {spec.v_dim}"
    if spec.dtype == "float32" and spec.precision == "highest" and max(spec.head_dim, spec.v_dim) > WIDEST_SPLIT:
        return f"takes float32 of at most {WIDEST_SPLIT} columns in a backward: more chunks would compute P again"
    dout = request.layouts.get("dout")
    if dout is not None and dout.dtype != spec.dtype:
        return f"takes a dout of {spec.dtype}, this one is {dout.dtype}"
    return None


def _why_no_tensor_cores(request: Request) -> str | None:
    spec, properties = request.spec, request.properties
    major, minor = properties.compute_capability
    if (major, minor) < (8, 0):
        return f"needs compute capability 8.0, this GPU has {major}.{minor}"
    if properties.shared_memory < LEAST_SHARED:
        return f"needs {LEAST_SHARED} bytes of shared memory a block, this GPU has {properties.shared_memory}"
    if spec.dtype == "float64":
        return "has no float64"
    full_float32 = spec.dtype == "float32" and spec.precision == "highest"
    if full_float32 and (reason := _why_not_three_products(spec.head_dim, major, minor)):
        return reason
    if spec.head_dim > BUCKETS[-1]:
        return f"takes a head_dim of at most {BUCKETS[-1]}, this one is {spec.head_dim}"
    bias = request.layouts.get("bias")
    if bias is not None and bias.dtype == "float64":
        return "takes no bias of float64"
    for name in ("mask", "bias"):
        if name in request.layouts and request.layouts[name].unaligned:
            return f"takes no {name} whose elements lie at any address"
    return None


def _why_not_three_products(head_dim: int, major: int, minor: int) -> str | None:
    if (major, minor) not in FAST_TF32:
        return f"takes three products for one of float32, not known to pay on compute capability {major}.{minor}"
    if head_dim < LEAST_FLOAT32:
        return f"takes float32 at full accuracy from a head_dim of {LEAST_FLOAT32} on, this one is {head_dim}"
    return None


SM80 = Family(
    "sm80",
    "tensor cores, from compute capability 8.0 on",
    _why_not_sm80,
    fwd.plan_sm80,
    bwd_sm80.plan_sm80,
    ("highest", "tf32"),
)
GENERIC = Family("generic", "plain FMA, any dtype and head_dim", lambda *_: None, fwd.plan_generic, bwd.plan_generic)

FAMILIES = {family.name: family for family in (SM80, GENERIC)}


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


def able(request: Request, direction: Direction) -> list[str]:
    """Names of the families that can serve one direction of a call, the preferred first; inside `only` that one."""
    name = forced()
    considered = FAMILIES if name is None else {name: FAMILIES[name]}
    reasons = {name: family.why_not(request, direction) for name, family in considered.items()}
    names = [name for name, reason in reasons.items() if reason is None]
    if not names:
        told = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise UnsupportedError(f"no CUDA kernel serves this call ({told})")
    return names


def to_try(request: Request, direction: Direction) -> list[str]:
    """Names of the families to try one after the other: those that are able to, or what the environment asks for.

    Raises
    ------
    UnsupportedError
        If there are none.
    ValueError
        If FLASHCUPY_FAMILY or FLASHCUPY_FALLBACK has a wrong value.
    """
    names = able(request, direction)
    if forced():
        return names
    return list(candidates(names))


def choose(request: Request, direction: Direction) -> tuple[Family, str]:
    """Return the family that is tried first, and why it is; raises as `to_try` does."""
    first = to_try(request, direction)[0]
    passed = []
    for name, other in FAMILIES.items():
        if name == first:
            break
        reason = other.why_not(request, direction) or "FLASHCUPY_FAMILY asks for another"
        passed.append(f"not {name}: {reason}")
    family = FAMILIES[first]
    return family, "; ".join((f"family {first}: {family.about}", *passed))
