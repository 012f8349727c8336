"""What is hidden does not leak: NaN and inf in rows that nothing, or only some queries, may see."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest

import flashcupy as fc

_HIDDEN = [np.nan, np.inf, -np.inf]


def _operands(dtype="float32"):
    rng = np.random.default_rng(3)
    return [rng.standard_normal((2, 2, 40, 16)).astype(dtype) for _ in range(4)]


def _run(api, q, k, v, dout, **options):
    out, residuals = api.attention_fwd(q, k, v, **options)
    grads = api.attention_bwd(dout, residuals, dlse=np.ones_like(residuals.lse))
    return [out, residuals.lse, *grads[:3]]


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("tiles", ["small", "real"])
@pytest.mark.parametrize("poison", _HIDDEN)
@pytest.mark.parametrize("how", ["mask", "bias", "kv_lengths", "top_left", "window", "block_mask"])
def test_a_key_hidden_from_every_query_never_leaks(backend, how, poison, tiles, softcap):
    q, k, v, dout = _operands()
    visible = np.ones((40, 40), np.bool_)
    visible[:, 32:] = False
    options = {
        "mask": {"mask": visible},
        "bias": {"bias": np.where(visible, 0, -np.inf).astype(np.float32)},
        "kv_lengths": {"kv_lengths": 32},
        "top_left": {"causal": "top-left"},
        "window": {"window": (None, 0)},
        "block_mask": {"block_mask": fc.BlockMask.from_dense(visible, block_size=16)},
    }[how]
    if how in ("top_left", "window"):
        q, dout = q[..., :32, :], dout[..., :32, :]
        options = {"causal": "top-left"} if how == "top_left" else {"window": (None, 0), "mask": visible[:32]}
    with backend.small_tiles() if tiles == "small" else nullcontext():
        clean = _run(backend.api, q, k, v, dout, softcap=softcap, **options)
        k[..., 32:, :] = poison
        v[..., 32:, :] = poison
        poisoned = _run(backend.api, q, k, v, dout, softcap=softcap, **options)
    for a, b in zip(clean, poisoned, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("poison", _HIDDEN)
def test_a_query_that_sees_no_key_never_leaks(backend, poison, softcap):
    q, k, v, dout = _operands()
    mask = np.ones((40, 40), np.bool_)
    mask[5:9] = False
    clean = _run(backend.api, q, k, v, dout, mask=mask, softcap=softcap)
    q[..., 5:9, :] = poison
    dout[..., 5:9, :] = poison
    for a, b in zip(clean, _run(backend.api, q, k, v, dout, mask=mask, softcap=softcap), strict=True):
        assert np.array_equal(a, b)
    assert not clean[0][..., 5:9, :].any()
    assert np.isneginf(clean[1][..., 5:9]).all()
    assert not clean[2][..., 5:9, :].any()


@pytest.mark.parametrize("poison", _HIDDEN)
def test_rows_beyond_the_lengths_are_never_read(backend, poison):
    q, k, v, dout = _operands()
    lengths = {"q_lengths": [17, 40], "kv_lengths": [40, 23], "sinks": np.ones(2, np.float32)}
    clean = _run(backend.api, q, k, v, dout, **lengths)
    q[0, :, 17:], dout[0, :, 17:] = poison, poison
    k[1, :, 23:], v[1, :, 23:] = poison, poison
    for a, b in zip(clean, _run(backend.api, q, k, v, dout, **lengths), strict=True):
        assert np.array_equal(a, b)
    assert not clean[0][0, :, 17:].any()
    assert (clean[1][0, :, 17:] == 1).all()  # the sink alone
    assert not clean[3][1, :, 23:].any()


@pytest.mark.parametrize("poison", _HIDDEN)
def test_a_key_hidden_from_some_queries_reaches_only_the_others(backend, poison):
    q, k, v, _ = _operands()
    k[..., 20, :] = poison
    with backend.small_tiles():
        out, lse = backend.api.attention(q, k, v, causal=True, return_lse=True)
    assert np.isfinite(out[..., :20, :]).all()
    assert np.isfinite(lse[..., :20]).all()
    if np.isnan(poison):
        assert np.isnan(out[..., 20:, :]).all()
        assert np.isnan(lse[..., 20:]).all()


def test_a_row_without_keys_has_no_gradient_even_through_its_sink(backend):
    q, k, v, dout = _operands("float64")
    mask = np.ones((40, 40), np.bool_)
    mask[3] = False
    _, residuals = backend.api.attention_fwd(q, k, v, mask=mask, sinks=np.zeros(2))
    dlse = np.zeros_like(residuals.lse)
    dlse[..., 3] = 1e6
    grads = backend.api.attention_bwd(np.zeros_like(dout), residuals, wrt=("q", "k", "v", "sinks"), dlse=dlse)
    assert all(not g.any() for g in (grads.dq, grads.dk, grads.dv, grads.dsinks))


def test_a_sink_of_minus_infinity_is_no_sink(backend):
    q, k, v, _ = _operands()
    mask = np.ones((40, 40), np.bool_)
    mask[3] = False
    got = backend.api.attention(q, k, v, mask=mask, sinks=np.full(2, -np.inf, np.float32), return_lse=True)
    for a, b in zip(got, backend.api.attention(q, k, v, mask=mask, return_lse=True), strict=True):
        assert np.array_equal(a, b)


def test_scores_beyond_the_range_of_float32_stay_finite(backend):
    """Large opposite scores: what exp without a reference, or with a poor one, turns into inf or 0 / 0."""
    q = np.full((1, 1, 64), 40, np.float32)
    k = np.full((1, 600, 64), -40, np.float32)
    k[:, 550] = 40
    v = np.arange(600, dtype=np.float32)[None, :, None]
    out, lse = backend.api.attention(q, k, v, scale=1.0, return_lse=True)
    assert out.item() == 550
    assert lse.item() == pytest.approx(40 * 40 * 64, rel=2 * float(np.finfo(np.float32).eps))


def test_a_bias_of_nan_is_shown_not_hidden(backend):
    q, k, v, _ = _operands()
    bias = np.zeros((40, 40), np.float32)
    bias[3, 5] = np.nan
    out = backend.api.attention(q, k, v, bias=bias)
    assert np.isnan(out[..., 3, :]).all()
    assert np.isfinite(np.delete(out, 3, axis=-2)).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_least_bias_hides_among_others_and_is_equal_among_its_like(backend, dtype):
    """What many write for -inf. Times log2(e) it would be."""
    q, k, v, _ = _operands(dtype)
    bias = np.zeros((40, 40), dtype)
    bias[:, 30:] = np.finfo(dtype).min
    hidden = backend.api.attention(q, k, v, bias=bias)
    bias[3] = np.finfo(dtype).min
    out = backend.api.attention(q, k, v, bias=bias)
    assert np.array_equal(np.delete(out, 3, axis=-2), np.delete(hidden, 3, axis=-2))
    if dtype != "float16":  # whose least number is not so large that products were lost beside it
        mean = v.astype(np.float64).mean(axis=-2)
        assert np.abs(out[..., 3, :] - mean).max() < 64 * np.finfo(dtype).eps


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_score_of_minus_infinity_has_no_weight(backend, dtype):
    q, k, v, _ = _operands(dtype)
    q = np.abs(q) + q.dtype.type(0.1)
    mask = np.ones((40, 40), np.bool_)
    mask[:, 20] = False
    expected = backend.api.attention(q, k, v, mask=mask)
    k[..., 20, :] = -np.inf
    assert np.array_equal(backend.api.attention(q, k, v, mask=np.ones_like(mask)), expected)
    assert np.isfinite(backend.api.attention(q, k, v)).all()


@pytest.mark.parametrize("side", [2**62, 2**63 - 1, 2**64])
def test_a_window_wider_than_everything_is_unbounded(backend, side):
    q, k, v, _ = _operands()
    expected = backend.api.attention(q, k, v)
    assert np.array_equal(backend.api.attention(q, k, v, window=(side, side)), expected)
    assert np.array_equal(backend.api.attention(q, k, v, window=(None, side)), expected)
