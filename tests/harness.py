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
# luck, so small tensors are pooled over several draws of the case.
_MOST_DRAWS = 40
# Where float32 runs on tensor cores, but for narrow heads.
_OTHER_KERNELS = ("emu_sm80", "cupy")
_NAMES = ("out", "lse", "dq", "dk", "dv", "dbias", "dsinks")


def check(case: Case, backend: Any, *, pooled_size: int = 4096, deterministic: bool = False) -> None:
    """Forward, lse and every gradient against the oracle; where tensor cores leave the case to others, on them too."""
    wide = _for_tensor_cores(case)
    for one in (case,) if wide == case or backend.name not in _OTHER_KERNELS else (case, wide):
        first = one.make()
        smallest = min(x.size for x in (first.q, first.k, first.v, *_differentiable(first)) if x.size)
        _check(one, smallest, pooled_size, lambda problem: _results(problem, backend, deterministic))


def check_tensor_cores(case: Case, backend: Any, *, pooled_size: int = 4096) -> None:
    """Forward and lse alone, with a head_dim that tensor cores do not leave to plain FMA."""
    check_forward(_for_tensor_cores(case), backend, pooled_size=pooled_size)


def _for_tensor_cores(case: Case) -> Case:
    if case.dtype != "float32" or case.precision != "highest" or case.sizes.head_dim >= LEAST_FLOAT32:
        return case
    return replace(case, sizes=replace(case.sizes, head_dim=LEAST_FLOAT32))


def check_forward(case: Case, backend: Any, *, pooled_size: int = 4096) -> None:
    """Forward and lse alone, against the oracle."""
    _check(case, case.make().dlse.size, pooled_size, lambda problem: _forward_results(problem, backend))


def _check(case: Case, smallest: int, pooled_size: int, results: Callable[[Problem], list[Any]]) -> None:
    first = case.make()
    draws = min(_MOST_DRAWS, -(-pooled_size // smallest))
    problems = [first, *(case.make(draw) for draw in range(1, draws))]
    pools = zip(*(results(problem) for problem in problems), strict=True)
    for name, pool in zip(_NAMES, pools, strict=False):
        got, truth, coarse = zip(*pool, strict=True)
        if got[0] is None:
            assert truth[0] is None, name
            continue
        keys = max(first.k.shape[-2], first.q.shape[-2] if name.startswith("d") else 0)
        assert_close(
            np.stack(got),
            np.stack(truth),
            np.stack(coarse),
            grad=name.startswith("d"),
            num_keys=keys,
            precision=case.precision,
        )


def _forward_results(p: Problem, backend: Any) -> list[tuple[Any, Any, Any]]:
    """(ours, the oracle's, the naive computation's) for out and lse."""
    got = backend.api.attention(p.q, p.k, p.v, return_lse=True, precision=p.precision, **p.options)
    truth = reference.attention(p.q, p.k, p.v, **p.options)
    return list(zip(got, truth, naive(p.q, p.k, p.v, p.q.dtype, p.precision, **p.options), strict=True))


def _differentiable(p: Problem) -> list[np.ndarray]:
    return [p.options[name] for name in ("bias", "sinks") if name in p.options]


def _results(p: Problem, backend: Any, deterministic: bool) -> list[tuple[Any, Any, Any]]:
    """(ours, the oracle's, the naive computation's) for out, lse and all gradients."""
    out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, precision=p.precision, **p.options)
    grads = backend.api.attention_bwd(p.dout, residuals, wrt=p.wrt, dlse=p.dlse, deterministic=deterministic)
    got = out, residuals.lse, *grads
    models = p.q, p.dlse, p.q, p.k, p.v, p.options.get("bias"), p.options.get("sinks")
    for result, model in zip(got, models, strict=True):
        assert (result is None) == (model is None)
        assert result is None or result.dtype == model.dtype
    extra = {"dlse": p.dlse, **p.options}
    truth = (*reference.attention(p.q, p.k, p.v, **p.options), *reference.attention_bwd(p.dout, p.q, p.k, p.v, **extra))
    coarse = (
        *naive(p.q, p.k, p.v, p.q.dtype, p.precision, **p.options),
        *naive_bwd(p.dout, p.q, p.k, p.v, p.q.dtype, p.precision, **extra),
    )
    return list(zip(got, truth, coarse, strict=True))
