"""What a candidate is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from bench.gpu.device import Gpu
from bench.gpu.operands import Operands
from bench.gpu.problem import Problem
from bench.harness import Call


class UnavailableError(Exception):
    """A candidate does not do that, or is not installed; the message says which."""


@dataclass(frozen=True)
class Prepared:
    """One call, ready to be timed.

    Attributes
    ----------
    call
        Enqueues the work.
    head
        Takes the call's result to the tensors of the checked head by name, as `bench.gpu.reference.expected` has them,
        arrays of the GPU's array module.
    around
        Context of every call, entered outside the timed region.
    peak
        Returns the most bytes that a call allocates; None where the library cannot tell.
    capture
        Turns a call into the replay of its CUDA graph; None where nobody asks.
    clock
        "events" of the current CUDA stream; "host" for a library that works on streams of its own.
    wait
        Waits for a call's result, for the host's clock.
    kernel
        Name of the kernel that serves it, where the library tells.
    """

    call: Call
    head: Callable[[Any], dict[str, Any]]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    peak: Callable[[Call], int] | None = None
    capture: Callable[[Call], Call] | None = None
    clock: Literal["events", "host"] = "events"
    wait: Callable[[Any], object] = lambda result: None
    kernel: str = ""


@dataclass(frozen=True)
class Candidate:
    """A name, and how to prepare its call; `prepare` may raise anything, which is then the reason for its absence."""

    name: str
    prepare: Callable[[Problem, Operands, Gpu], Prepared]


def require_plain(problem: Problem, *served: str) -> None:
    """Refuse options that a candidate has no equal of, block masks and packed sequences."""
    if missing := [option for option in problem.options if option not in served]:
        raise UnavailableError(f"has no equal of {' and '.join(missing)}")
    if problem.pattern is not None and "pattern" not in served:
        raise UnavailableError("has no block-sparse attention")
    if problem.sequences:
        raise UnavailableError("packed sequences are measured for flashcupy only")


def require_dtype(problem: Problem, *served: str) -> None:
    if problem.dtype not in served:
        raise UnavailableError(f"takes {' and '.join(served)} only")
