"""Run a case on a backend and hold every result to the contract's bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from cases import Case, Problem
from naive import assert_close, naive, naive_bwd

from flashcupy import reference
from flashcupy.cuda.families import LEAST_FLOAT32

# The bound compares the largest of our errors with the largest of the naive computation's. Of few elements either is
# luck, so small tensors are pooled over several draws of the case. That of float64 is absolute: one draw will do.
_MOST_DRAWS = 16
# Where float32 runs on tensor cores, but for narrow heads.
_OTHER_KERNELS = ("emu_sm80", "cupy")
# (ours, the oracle's, the naive computation's) by name.
_Results = dict[str, tuple[Any, Any, Any]]
_NAMES = ("out", "lse", "dq", "dk", "dv", "dbias", "dsinks")


def check(case: Case, backend: Any, *, pooled_size: int = 4096, deterministic: bool = False) -> None:
    """Forward, lse and every gradient against the oracle; where tensor cores leave the case to others, on them too."""
    wide = _for_tensor_cores(case)
    for one in (case,) if wide == case or backend.name not in _OTHER_KERNELS else (case, wide):
        draws = {name: _draws(one, grad, pooled_size) for name, grad in _true_gradients(one.make()).items()}

        def results(problem: Problem, draw: int, draws: dict[str, int] = draws) -> _Results:
            # Later draws are for small tensors alone: a few sinks would cost 16 backwards of everything.
            wrt = tuple(name for name, most in draws.items() if draw < most)
            return _results(problem, backend, wrt, deterministic)

        _check(one, max(draws.values()), results)


def _draws(case: Case, truth: Any, pooled_size: int) -> int:
    """How many draws have `pooled_size` elements that can be wrong: what no query or key sees is exactly 0, or -inf."""
    size = np.count_nonzero(np.isfinite(truth) & (truth != 0))
    if size == 0 or case.dtype == "float64":
        return 1
    # Rows that see few keys make tails of errors long: a single draw of thousands of elements is their luck, too.
    least = 2 if size < 4 * pooled_size else 1
    return min(_MOST_DRAWS, max(least, -(-pooled_size // size)))


def _for_tensor_cores(case: Case) -> Case:
    if case.dtype != "float32" or case.precision != "highest" or case.sizes.head_dim >= LEAST_FLOAT32:
        return case
    return replace(case, sizes=replace(case.sizes, head_dim=LEAST_FLOAT32))


def check_forward(case: Case, backend: Any, *, pooled_size: int = 4096) -> None:
    """Forward and lse alone, against the oracle."""
    first = case.make()
    draws = _draws(case, reference.attention(first.q, first.k, first.v, **first.options)[1], pooled_size)
    _check(case, draws, lambda problem, draw: _forward_results(problem, backend))


def _check(case: Case, draws: int, results: Callable[[Problem, int], _Results]) -> None:
    problems = [case.make(draw) for draw in range(draws)]
    pools: dict[str, list[tuple[Any, Any, Any]]] = {}
    for draw, problem in enumerate(problems):
        for name, triple in results(problem, draw).items():
            pools.setdefault(name, []).append(triple)
    first = problems[0]
    for name, pool in pools.items():
        keys = max(first.k.shape[-2], first.q.shape[-2] if name.startswith("d") else 0)
        got, truth, coarse = (np.stack(parts) for parts in zip(*pool, strict=True))
        grad = name.startswith("d")
        assert_close(got, truth, coarse, grad=grad, num_keys=keys, precision=case.precision)


def _forward_results(p: Problem, backend: Any) -> _Results:
    got = backend.api.attention(p.q, p.k, p.v, return_lse=True, precision=p.precision, **p.options)
    truth = reference.attention(p.q, p.k, p.v, **p.options)
    return _by_name(_NAMES[:2], got, truth, naive(p.q, p.k, p.v, p.q.dtype, p.precision, **p.options))


def _true_gradients(p: Problem) -> dict[str, np.ndarray]:
    grads = reference.attention_bwd(p.dout, p.q, p.k, p.v, dlse=p.dlse, **p.options)
    return {name: grad for name, grad in zip(("q", "k", "v", "bias", "sinks"), grads, strict=True) if grad is not None}


def _results(p: Problem, backend: Any, wrt: tuple[str, ...], deterministic: bool) -> _Results:
    """Out, lse and the gradients of `wrt`."""
    out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, precision=p.precision, **p.options)
    grads = backend.api.attention_bwd(p.dout, residuals, wrt=wrt, dlse=p.dlse, deterministic=deterministic)
    got = out, residuals.lse, *grads
    models = p.q, p.dlse, p.q, p.k, p.v, p.options.get("bias"), p.options.get("sinks")
    for name, result, model in zip(_NAMES, got, models, strict=True):
        assert (result is not None) == (name in ("out", "lse") or name[1:] in wrt), name
        assert result is None or result.dtype == model.dtype
    extra = {"dlse": p.dlse, **p.options}
    truth = (*reference.attention(p.q, p.k, p.v, **p.options), *reference.attention_bwd(p.dout, p.q, p.k, p.v, **extra))
    coarse = (
        *naive(p.q, p.k, p.v, p.q.dtype, p.precision, **p.options),
        *naive_bwd(p.dout, p.q, p.k, p.v, p.q.dtype, p.precision, **extra),
    )
    return _by_name(_NAMES, got, truth, coarse)


def _by_name(names: tuple[str, ...], got: Any, truth: Any, coarse: Any) -> _Results:
    triples = zip(got, truth, coarse, strict=True)
    return {name: triple for name, triple in zip(names, triples, strict=True) if triple[0] is not None}
