"""merge_attention: parts of the keys add up to all of them."""

from __future__ import annotations

import numpy as np
import pytest
from cases import DTYPES
from naive import assert_close, naive

from flashcupy import reference

_PARTS = (slice(0, 20), slice(20, 21), slice(21, 70))


def _operands(dtype):
    rng = np.random.default_rng(0)
    return (rng.standard_normal((2, 4, n, 16)).astype(DTYPES[dtype]) for n in (33, 70, 70))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_the_keys(backend, dtype):
    q, k, v = _operands(dtype)
    wide = np.float64 if dtype == "float64" else np.float32
    parts = []
    for keys in _PARTS:
        out, residuals = backend.api.attention_fwd(q, k[..., keys, :], v[..., keys, :], out=np.empty(q.shape, wide))
        parts.append((out, residuals.lse))
    merged, lse = backend.api.merge_attention(*zip(*parts, strict=True), out=np.empty_like(q))
    assert merged.dtype == q.dtype
    want, coarse = reference.attention(q, k, v), naive(q, k, v, q.dtype)
    for got, a, b in zip((merged, lse), want, coarse, strict=True):
        assert_close(got, a, b, num_keys=70)


def test_sinks_go_to_one_part(backend):
    q, k, v = _operands("float64")
    sinks = np.linspace(-1, 2, 4)
    parts = [
        backend.api.attention(q, k[..., s, :], v[..., s, :], sinks=sinks if s is _PARTS[0] else None, return_lse=True)
        for s in _PARTS
    ]
    for got, want in zip(
        backend.api.merge_attention(*zip(*parts, strict=True)), reference.attention(q, k, v, sinks=sinks), strict=True
    ):
        assert_close(got, want, None, num_keys=70)


def test_rows_that_saw_nothing_in_some_or_all_parts(backend):
    out = np.array([[1.0, 2.0], [np.nan, np.nan], [5.0, 6.0]])
    other = np.array([[3.0, 4.0], [np.nan, np.inf], [np.nan, 7.0]])
    lse, other_lse = np.array([0.0, -np.inf, 1.0]), np.array([0.0, -np.inf, -np.inf])
    merged, merged_lse = backend.api.merge_attention([out, other], [lse, other_lse])
    np.testing.assert_array_equal(merged, [[2, 3], [0, 0], [5, 6]])
    np.testing.assert_allclose(merged_lse, [np.log(2), -np.inf, 1.0])


def test_the_documented_gradient_recipe(backend):
    q, k, v = _operands("float64")
    rng = np.random.default_rng(1)
    parts = [backend.api.attention(q, k[..., s, :], v[..., s, :], return_lse=True) for s in _PARTS]
    out, lse = backend.api.merge_attention(*zip(*parts, strict=True))
    dout, dlse = rng.standard_normal(out.shape), rng.standard_normal(lse.shape)
    expected = reference.attention_bwd(dout, q, k, v, dlse=dlse)
    dq = np.zeros_like(q)
    for s in _PARTS:
        residuals = backend.api.AttentionResiduals.from_arrays(q, k[..., s, :], v[..., s, :], out, lse)
        grads = backend.api.attention_bwd(dout, residuals, dlse=dlse)
        dq += grads.dq
        assert_close(grads.dk, expected.dk[..., s, :], None, grad=True, num_keys=70)
        assert_close(grads.dv, expected.dv[..., s, :], None, grad=True, num_keys=70)
    assert_close(dq, expected.dq, None, grad=True, num_keys=70)


def test_keeps_memory_order_and_empty_shapes(backend):
    out = np.ones((2, 3, 4)).swapaxes(0, 1)
    merged, _ = backend.api.merge_attention([out], [np.zeros((3, 2))])
    assert merged.swapaxes(0, 1).flags.c_contiguous
    assert backend.api.merge_attention([np.ones((0, 4))], [np.ones(0)])[0].shape == (0, 4)


@pytest.mark.parametrize(
    ("outs", "lses", "out", "error", "message"),
    [
        ([], [], None, ValueError, "outs has 0 parts"),
        ([np.ones((2, 3))], [], None, ValueError, "outs has 1 parts and lses 0"),
        ([np.ones((2, 3)), np.ones((2, 4))], [np.ones(2)] * 2, None, ValueError, r"outs\[1\] has shape"),
        ([np.ones((2, 3)), np.ones((2, 3), np.float32)], [np.ones(2)] * 2, None, TypeError, r"outs\[1\] has dtype"),
        ([np.ones((2, 3))], [np.ones(3)], None, ValueError, r"lses\[0\] has shape"),
        ([np.ones((2, 3))], [np.ones(2, np.float16)], None, TypeError, r"lses\[0\] has dtype"),
        ([np.ones((2, 3))], [np.ones(2)], np.ones((2, 2)), ValueError, "out has shape"),
        ([np.ones((2, 3))], [np.ones(2)], [[0.0] * 3] * 2, TypeError, "out is a list"),
    ],
)
def test_bad_input(backend, outs, lses, out, error, message):
    with pytest.raises(error, match=message):
        backend.api.merge_attention(outs, lses, out=out)


def test_out_must_not_be_a_part(backend):
    part = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"out shares memory with outs\[0\]"):
        backend.api.merge_attention([part], [np.ones(2)], out=part)
