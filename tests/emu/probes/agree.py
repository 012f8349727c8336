"""A problem on a backend against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from backends import EmuBackend
from cases import Case, Problem, Sizes
from harness import check
from naive import assert_close

from flashcupy import reference

Probe = Callable[[EmuBackend], None]


# Two chunks of depth and of result columns, each with a tail, and tails of rows and keys.
SIZES = Sizes(head_dim=20)
# Tiles without a tail, so that some are FULL.
EVEN = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=64, kv_len=64, head_dim=4, v_dim=4)


def problem(features: tuple[str, ...], sizes: Sizes, options: dict[str, Any]) -> Problem:
    problem = Case(features, "float64", sizes).make()
    problem.options |= options
    if "sinks" in problem.options:
        problem.options["sinks"] = problem.options["sinks"].astype(np.float64)  # its gradient has the dtype that it has
    return problem


def agree(backend: EmuBackend, p: Problem, *, backward: bool = True, wrt: tuple[str, ...] | None = None) -> None:
    """Out, lse and gradients within the bound of float64."""
    out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, **p.options)
    for got, want in zip((out, residuals.lse), reference.attention(p.q, p.k, p.v, **p.options), strict=True):
        assert_close(got, want, None, num_keys=p.k.shape[-2])
    if backward:
        gradients_agree(backend, p, residuals, wrt or p.wrt)


def gradients_agree(backend: EmuBackend, p: Problem, residuals: Any, wrt: tuple[str, ...]) -> None:
    grads = backend.api.attention_bwd(p.dout, residuals, wrt=wrt, dlse=p.dlse)
    expected = reference.attention_bwd(p.dout, p.q, p.k, p.v, dlse=p.dlse, **p.options)
    for name, got, want in zip(("q", "k", "v", "bias", "sinks"), grads, expected, strict=True):
        if name in wrt:
            assert_close(got, want, None, grad=True, num_keys=max(p.q.shape[-2], p.k.shape[-2]))


def forward(*features: str, sizes: Sizes = SIZES, **options: Any) -> Probe:
    return lambda backend: agree(backend, problem(features, sizes, options), backward=False)


def both(*features: str, sizes: Sizes = SIZES, wrt: tuple[str, ...] | None = None, **options: Any) -> Probe:
    return lambda backend: agree(backend, problem(features, sizes, options), wrt=wrt)


def windows(*windows: tuple[int | None, int | None], **options: Any) -> Probe:
    def run(backend: EmuBackend) -> None:
        for window in windows:
            agree(backend, problem((), EVEN, {"window": window, **options}))

    return run


def within_naive(dtype: str, *features: str, sizes: Sizes = SIZES) -> Probe:
    """Every result within the bound that the naive computation sets."""
    return lambda backend: check(Case(features, dtype, sizes), backend, pooled_size=1 << 12)


def broadcast(**options: Any) -> Probe:
    """Two batch dims that cannot be merged, each operand broadcast in another way."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(0)
        shapes = (3, 1, 4, 20, 6), (2, 2, 40, 6), (3, 2, 2, 40, 4), (3, 2, 4, 20, 4)
        q, k, v, dout = (rng.standard_normal(shape) for shape in shapes)
        agree(backend, Problem(q, k, v, dout, rng.standard_normal(dout.shape[:-1]), options, "highest"))

    return run


def bias_of(*shape: int) -> Probe:
    return broadcast(bias=np.random.default_rng(2).standard_normal(shape), causal=True)
