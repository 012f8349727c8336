"""The naive computation, and the bound that it sets."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from naive import assert_close, naive, naive_bwd, naive_varlen, naive_varlen_bwd
from rowwise import CU_K, CU_Q, INF, PACKED_CASES, TALL, operands, packed_operands

from flashcupy.bound import allowed_error, rounded_to_tf32
from flashcupy.philox import keep_mask, keep_scale, keep_threshold
from flashcupy.reference import attention_varlen, attention_varlen_bwd

NAN = np.nan


# ---- the naive computation and the bound -----------------------------------------------------------------------------


def test_naive_rounds_scores_weights_and_their_gradients():
    q, k, v, dout, _ = (x.astype(np.float16) for x in operands(TALL))
    wide_q, wide_k, wide_v, wide_dout = (x.astype(np.float32) for x in (q, k, v, dout))
    heads = [[keep_mask(keep_threshold(0.3), 5, 0, b, h, (0, 9), (0, 6)) for h in range(2)] for b in range(2)]
    z = np.array(heads, dtype=np.float32) * keep_scale(keep_threshold(0.3))

    def rounded(x):
        return x.astype(np.float16).astype(np.float32)

    t = np.tanh(wide_q @ wide_k.mT / 2 / 1.5)
    s = rounded(1.5 * t)
    e = np.exp(s - s.max(-1, keepdims=True))
    p = rounded(e / e.sum(-1, keepdims=True))
    dp = rounded(wide_dout @ wide_v.mT) * z
    ds = rounded(p * (dp - (p * dp).sum(-1, keepdims=True)))
    dqk = rounded(ds * (1 - t * t))
    options = {"softcap": 1.5, "bias": np.zeros((9, 6), np.float16), "dropout": 0.3, "seed": 5}
    out, lse = naive(q, k, v, np.float16, **options)
    assert (out.dtype, lse.dtype) == (np.float16, np.float32)
    grads = naive_bwd(dout, q, k, v, np.float16, **options)
    for actual, expected in (
        (out, rounded(p * z) @ wide_v),
        (grads.dq, dqk @ wide_k / 2),
        (grads.dk, dqk.mT @ wide_q / 2),
        (grads.dv, rounded(p * z).mT @ wide_dout),
        (grads.dbias, ds.sum(axis=(0, 1))),
    ):
        np.testing.assert_array_equal(actual, expected.astype(np.float16), strict=True)


def _nearest_tf32(x):
    """11 significant bits, by arithmetic."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(np.ldexp(fraction, 11)), exponent - 11).astype(np.float32)


def test_tf32_is_rounded_to_nearest_even():
    x = np.random.default_rng(0).standard_normal(2000).astype(np.float32)
    ties = (np.float32(1) + np.arange(-4, 9) * np.float32(2.0**-11)).astype(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 2.0**-126, -3.5e38 / 2], np.float32)
    for given in (x, -x, ties, -ties, special):
        np.testing.assert_array_equal(rounded_to_tf32(given), _nearest_tf32(given))
    assert np.isnan(rounded_to_tf32(np.array([0x7FFFFFFF, 0x7F800001, 0xFFC00000], np.uint32).view(np.float32))).all()
    assert rounded_to_tf32(x[:6].reshape(2, 3).mT).shape == (3, 2)


def test_naive_in_tf32_rounds_what_matmuls_take():
    q, k, v, dout, _ = (x.astype(np.float32) for x in operands(TALL))
    low_q, low_k, low_v, low_dout = map(_nearest_tf32, (q, k, v, dout))
    t = np.tanh(low_q @ low_k.mT / 2 / 1.5)
    e = np.exp(1.5 * t - (1.5 * t).max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    dp = low_dout @ low_v.mT
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    dqk = _nearest_tf32(ds * (1 - t * t))
    out, lse = naive(q, k, v, np.float32, "tf32", softcap=1.5)
    grads = naive_bwd(dout, q, k, v, np.float32, "tf32", softcap=1.5)
    for actual, expected in (
        (out, _nearest_tf32(p) @ low_v),
        (grads.dq, dqk @ low_k / 2),
        (grads.dk, dqk.mT @ low_q / 2),
        (grads.dv, _nearest_tf32(p).mT @ low_dout),
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    assert lse.dtype == np.float32


def test_tf32_is_allowed_an_error_of_its_own():
    truth = np.array([1.5])
    assert allowed_error(truth, truth, np.dtype(np.float32), grad=False, num_keys=1) == 2 * 2.0**-23
    assert allowed_error(truth, truth, np.dtype(np.float32), grad=False, num_keys=1, precision="tf32") == 2 * 2.0**-10
    assert allowed_error(truth, truth, np.dtype(np.float16), grad=False, num_keys=1, precision="tf32") == 2 * 2.0**-10


@pytest.mark.parametrize("name", PACKED_CASES)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_naive_is_near_and_keeps_dtypes(dtype, name):
    options = PACKED_CASES[name]
    q, k, v, dout, dlse = (x.astype(dtype) for x in packed_operands())
    eps = float(ml_dtypes.finfo(dtype).eps)
    out, lse = naive_varlen(q, k, v, CU_Q, CU_K, dtype, **options)
    assert (out.dtype, lse.dtype) == (dtype, np.promote_types(dtype, np.float32))
    expected_out, expected_lse = attention_varlen(q, k, v, CU_Q, CU_K, **options)
    np.testing.assert_allclose(out.astype(float), expected_out, rtol=0, atol=16 * eps)
    np.testing.assert_allclose(lse, expected_lse, rtol=0, atol=16 * eps)
    grads = naive_varlen_bwd(dout, q, k, v, CU_Q, CU_K, dtype, **options, dlse=dlse)
    expected = attention_varlen_bwd(dout, q, k, v, CU_Q, CU_K, **options, dlse=dlse)
    dtypes = [dtype] * 3 + [options[key].dtype if key in options else None for key in ("bias", "sinks")]
    for grad, other, own in zip(grads, expected, dtypes, strict=True):
        if own is None:
            assert grad is None
        else:
            assert grad.dtype == own
            np.testing.assert_allclose(grad.astype(float), other, rtol=0, atol=64 * eps * np.abs(other).max(initial=1))


def test_bound_of_low_precision():
    expected, coarse = np.array([1.5, -3.0, -INF]), np.array([1.5, -3.0 + 1 / 128, -INF], np.float32)
    ulp = 2.0**-9  # of 3 in float16
    for grad, factor in ((False, 2), (True, 3)):
        limit = factor / 128 + 2 * ulp
        assert_close(np.array([1.5, -3.0 + limit, -INF], np.float16), expected, coarse, grad=grad)
        with pytest.raises(AssertionError, match=r"at \(1,\): got -2.9\d+, expected -3.0"):
            assert_close(np.array([1.5, -3.0 + limit + ulp, -INF], np.float16), expected, coarse, grad=grad)


def test_bound_of_float64():
    expected = np.array([1.0, 2.0])
    limit = 64 * 2.0**-52 * 3 * 2
    assert_close(np.array([1.0 + limit, 2.0]), expected, None, num_keys=9)
    with pytest.raises(AssertionError, match=r"at \(0,\)"):
        assert_close(np.array([1.0 + 1.01 * limit, 2.0]), expected, None, num_keys=9)
    with pytest.raises(AssertionError, match=r"at \(0,\)"):
        assert_close(np.array([1.0 + limit, 2.0]), expected, None)


@pytest.mark.parametrize(("got", "expected"), [(NAN, 1.0), (INF, 1.0), (1.0, -INF), (INF, -INF), (1.0, NAN)])
def test_bound_wants_inf_and_nan_in_place(got, expected):
    with pytest.raises(AssertionError, match="inf and nan"):
        assert_close(np.array([0.0, got]), np.array([0.0, expected]), None)


def test_bound_refuses_what_it_cannot_judge():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(np.zeros(2), np.zeros((1, 2)), None)
    with pytest.raises(ValueError, match="naive is None"):
        assert_close(np.zeros(2, np.float32), np.zeros(2), None)
    with pytest.raises(ValueError, match="bounds nothing"):
        assert_close(np.ones(1, np.float16), np.ones(1), np.array([INF]))
