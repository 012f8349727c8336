"""Gradients through the API for tests: plain operands, the calls, and the contract's bound."""

from __future__ import annotations

import numpy as np
from cases import DTYPES, NUMBERS, normal
from naive import assert_close, naive_bwd

from flashcupy import reference


def operands(numbers, *, q_len=45, kv_len=77, head_dim=40, v_dim=24, heads=2, batch=()):
    """q, k, v, dout."""
    dtype, rng = DTYPES[NUMBERS[numbers]["dtype"]], np.random.default_rng(0)
    shapes = (heads, q_len, head_dim), (1, kv_len, head_dim), (1, kv_len, v_dim), (heads, q_len, v_dim)
    return [np.ascontiguousarray(normal(rng, (*batch, *shape), dtype)) for shape in shapes]


def options(numbers):
    return {"precision": NUMBERS[numbers].get("precision", "highest")}


def of(api, q, k, v, dout, *, deterministic=False, dlse=None, wrt=("q", "k", "v"), **options):
    _, residuals = api.attention_fwd(q, k, v, **options)
    return api.attention_bwd(dout, residuals, dlse=dlse, wrt=wrt, deterministic=deterministic)


def require_right(grads, q, k, v, dout, precision="highest", **options):
    want = reference.attention_bwd(dout, q, k, v, **options)
    coarse = naive_bwd(dout, q, k, v, q.dtype, precision, **options)
    keys = max(q.shape[-2], k.shape[-2])
    for got, truth, low in zip(grads, want, coarse, strict=True):
        if got is not None:
            assert_close(got, truth, low, grad=True, num_keys=keys, precision=precision)


def equal(grads, others):
    return all(a is b or np.array_equal(a, b) for a, b in zip(grads, others, strict=True))
