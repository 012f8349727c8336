"""Run a problem on a backend and hold every result to the contract's bound."""

from __future__ import annotations

from typing import Any

import numpy as np
from cases import Problem
from naive import assert_close, naive, naive_bwd

import flashcupy as fc
from flashcupy import reference

_ARRAYS = ("mask", "bias", "alibi_slopes", "sinks", "q_lengths", "kv_lengths")


def check(problem: Problem, backend: Any, *, gradients: bool = True) -> None:
    """Forward, lse and every gradient against the oracle."""
    p = problem
    options = {n: backend.put(x) if n in _ARRAYS else x for n, x in p.options.items()}
    q, k, v, dout = (backend.put(x) for x in (p.q, p.k, p.v, p.dout))
    out, residuals = fc.attention_fwd(q, k, v, **options)
    compare_forward(p, [backend.get(x) for x in (out, residuals.lse)])
    if gradients:
        grads = fc.attention_bwd(dout, residuals, wrt=p.wrt, dlse=backend.put(p.dlse))
        compare_gradients(p, [None if g is None else backend.get(g) for g in grads])


def compare_forward(p: Problem, results: list[np.ndarray]) -> None:
    dtype, keys = p.q.dtype, p.k.shape[-2]
    assert results[0].dtype == dtype
    truth, coarse = reference.attention(p.q, p.k, p.v, **p.options), naive(p.q, p.k, p.v, dtype, **p.options)
    for got, want, low in zip(results, truth, coarse, strict=True):
        assert_close(got, want, low, num_keys=keys)


def compare_gradients(p: Problem, grads: list[np.ndarray | None]) -> None:
    extra = {"dlse": p.dlse, **p.options}
    true_grads = reference.attention_bwd(p.dout, p.q, p.k, p.v, **extra)
    coarse_grads = naive_bwd(p.dout, p.q, p.k, p.v, p.q.dtype, **extra)
    models = (p.q, p.k, p.v, p.options.get("bias"), p.options.get("sinks"))
    for name, model, got, want, low in zip(true_grads._fields, models, grads, true_grads, coarse_grads, strict=True):
        assert (got is None) == (model is None), name
        if got is not None:
            assert got.dtype == model.dtype, name
            assert_close(got, want, low, grad=True, num_keys=max(p.k.shape[-2], p.q.shape[-2]))
