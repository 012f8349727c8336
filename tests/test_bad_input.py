"""Bad input: one sentence that names the argument, what came and what is wanted, before anything is written."""

from __future__ import annotations

import numpy as np
import pytest

import flashcupy as fc

Q = np.ones((2, 4, 5, 8), np.float32)
K = np.ones((2, 2, 7, 8), np.float32)
BM = fc.BlockMask.causal((5, 7), block_size=16)


_CASES = [
    # shapes
    ({"q": Q[0, 0, 0]}, ValueError, r"q has shape \(8,\), expected at least 2 dims"),
    ({"k": K[..., :4]}, ValueError, "k has head_dim 4, expected 8"),
    ({"q": Q[..., :0], "k": K[..., :0]}, ValueError, "q has head_dim 0"),
    ({"v": K[:, :, :3]}, ValueError, "v has 3 rows, expected 7"),
    ({"v": K[:, :1]}, ValueError, "v has 1 heads, expected 2"),
    ({"q": Q[:, :3]}, ValueError, "q has 3 heads and k has 2"),
    ({"q": Q[:, :1]}, ValueError, "q has 1 heads and k has 2"),
    ({"q": np.ones((3, 4, 5, 8), np.float32)}, ValueError, "batch dims q .3,., k .2,."),
    # dtypes
    ({"q": Q.astype(np.int32)}, TypeError, "q has dtype int32, expected one of float16, bfloat16"),
    ({"q": Q.astype(np.complex64)}, TypeError, "q has dtype complex64"),
    ({"k": K.astype(np.float64)}, TypeError, "k has dtype float64, expected float32 as q has"),
    ({"v": np.ma.masked_array(K)}, TypeError, "v is a masked array"),
    # options
    ({"causal": "left"}, ValueError, "causal is 'left', expected False, True, 'bottom-right' or 'top-left'"),
    ({"causal": 1}, ValueError, "causal is 1"),
    ({"scale": "big"}, TypeError, "scale is 'big'"),
    ({"scale": np.nan}, ValueError, "scale is nan"),
    ({"scale": True}, TypeError, "scale is True"),
    ({"softcap": 0.0}, ValueError, "softcap is 0.0, expected a number above 0"),
    ({"softcap": -1}, ValueError, "softcap is -1"),
    ({"window": 5}, TypeError, "window is 5, expected a pair"),
    ({"window": (-1, 0)}, ValueError, "window is .-1, 0., .* None, not -1"),
    ({"window": (1.5, 0)}, TypeError, "window is .1.5, 0."),
    ({"window": (True, 0)}, ValueError, "window is .True, 0."),
    ({"window": (1, 2, 3)}, TypeError, "window"),
    ({"precision": "low"}, ValueError, "precision is 'low', expected 'highest' or 'tf32'"),
    ({"precision": np.ones(2)}, ValueError, "precision is .*, expected 'highest'"),
    ({"dropout": 1.0}, ValueError, "dropout is 1.0, expected a probability"),
    ({"dropout": -0.1}, ValueError, "dropout is -0.1"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
    ({"seed": 1.0}, TypeError, "seed is 1.0"),
    ({"seed": (1, 2, 3)}, ValueError, "seed has 3 values"),
    ({"seed": np.zeros(2)}, TypeError, "seed is an array .* expected uint64"),
    # operands
    ({"mask": np.ones((5, 7))}, TypeError, "mask has dtype float64, expected bool .* bias="),
    ({"mask": np.ones((5, 6), np.bool_)}, ValueError, r"mask has shape \(5, 6\), expected one that broadcasts"),
    ({"mask": np.ones((3, 1, 1, 5, 7), np.bool_)}, ValueError, "mask has shape"),
    ({"bias": np.ones((5, 7), np.bool_)}, TypeError, "bias has dtype bool, .* mask="),
    ({"bias": np.ones((5, 7), np.int64)}, TypeError, "bias has dtype int64"),
    ({"bias": np.ones((2, 1, 7), np.float32)}, ValueError, "bias has shape"),
    ({"alibi_slopes": np.ones(3)}, ValueError, r"alibi_slopes has shape \(3,\)"),
    ({"alibi_slopes": np.ones(4, np.int32)}, TypeError, "alibi_slopes has dtype int32"),
    ({"sinks": np.ones(1)}, ValueError, r"sinks has shape \(1,\), expected \(4,\)"),
    ({"sinks": np.ones((2, 4))}, ValueError, "sinks has shape"),
    ({"q_lengths": [6, 5]}, ValueError, "q_lengths runs from 5 to 6, expected values from 0 to 5"),
    ({"kv_lengths": [-1, 5]}, ValueError, "kv_lengths runs from -1 to 5"),
    ({"kv_lengths": [1.0, 2.0]}, TypeError, "kv_lengths has dtype float64"),
    ({"kv_lengths": [1, 2, 3]}, ValueError, r"kv_lengths has shape \(3,\), expected one that broadcasts to \(2,\)"),
    ({"block_mask": np.ones((5, 7), np.bool_)}, TypeError, r"block_mask is a \w+, .* mask="),
    ({"block_mask": fc.BlockMask.causal((5, 8), block_size=16)}, ValueError, r"block_mask covers \(5, 8\)"),
    ({"block_mask": BM | BM, "q": Q[..., :4, :]}, ValueError, r"block_mask covers \(5, 7\).*expected \(4, 7\)"),
    # out
    ({"out": np.empty((2, 4, 5, 7), np.float32)}, ValueError, "out has shape"),
    ({"out": np.empty((2, 4, 5, 8), np.float64)}, TypeError, "out has dtype float64, expected float32"),
    ({"out": [[1.0]]}, TypeError, "out is a list"),
    ({"out": Q}, ValueError, "out shares memory with q"),
]
_HOST_CASES = [
    ({"q": Q.astype(np.longdouble)}, TypeError, "q has dtype (longdouble|float128)"),
    ({"q": None}, TypeError, "q has dtype object"),
    ({"q": "text"}, TypeError, "q has dtype"),
    ({"q": [[1.0], [1.0, 2.0]]}, TypeError, "q is a list that makes no array"),
    ({"out": np.broadcast_to(np.float32(0), (2, 4, 5, 8))}, TypeError, "out is an immutable"),
]


def _id(x):
    return str(x)[:60] if isinstance(x, str) else ""


@pytest.mark.parametrize(("change", "error", "message"), _HOST_CASES, ids=_id)
def test_what_only_the_host_can_be_given(change, error, message):
    with pytest.raises(error, match=message):
        fc.attention(**{"q": Q, "k": K, "v": K, **change})


@pytest.mark.parametrize(("change", "error", "message"), _CASES, ids=_id)
def test_forward(backend, change, error, message):
    call = {"q": Q, "k": K, "v": K, **change}
    before = {name: np.array(x, copy=True) for name, x in call.items() if isinstance(x, np.ndarray)}
    with pytest.raises(error, match=message) as caught:
        backend.api.attention(**call)
    assert "\n" not in str(caught.value)
    for name, copy in before.items():
        np.testing.assert_array_equal(np.asarray(call[name]), copy)


def test_block_mask_heads_and_batch(backend):
    dense = np.ones((3, 1, 5, 7), np.bool_)
    with pytest.raises(ValueError, match="block_mask has batch 3, expected 1 or 2"):
        backend.api.attention(Q, K, K, block_mask=fc.BlockMask.from_dense(dense, block_size=16))
    with pytest.raises(ValueError, match="block_mask has 3 heads, expected 1 or 2 or 4"):
        backend.api.attention(Q, K, K, block_mask=fc.BlockMask.from_dense(dense[:, 0], block_size=16))


def test_an_output_that_overlaps_itself(backend):
    base = np.empty((2, 4, 1, 8), np.float32)
    view = np.lib.stride_tricks.as_strided(base, (2, 4, 5, 8), (*base.strides[:2], 0, 4))
    with pytest.raises(ValueError, match="out is a broadcast view"):
        backend.api.attention(Q, K, K, out=view)


def test_interleaved_memory_is_no_overlap(backend):
    packed = np.ones((2, 4, 5, 4, 8), np.float32)
    q, k, v, out = (packed[..., i, :] for i in range(4))
    assert backend.api.attention(q, k, v, out=out) is out
    assert np.array_equal(out, np.ones_like(out))


@pytest.fixture
def residuals(backend):
    return backend.api.attention_fwd(Q, K, K)[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"residuals": Q}, TypeError, r"residuals is a \w+, expected flashcupy.AttentionResiduals"),
        ({"dout": Q[..., :3]}, ValueError, "dout has shape"),
        ({"dout": Q.astype(np.float64)}, TypeError, "dout has dtype float64"),
        ({"dlse": Q}, ValueError, "dlse has shape"),
        ({"dlse": Q[..., 0].astype(np.float16)}, TypeError, "dlse has dtype float16, expected float32"),
        ({"wrt": "q"}, TypeError, "wrt is 'q', expected a tuple"),
        ({"wrt": None}, TypeError, "wrt is None, expected a tuple"),
        ({"wrt": ("q", "x")}, ValueError, "wrt names 'x'"),
        ({"wrt": ("bias",)}, ValueError, "wrt names 'bias', but the forward was called without bias="),
        ({"out": (None,) * 5}, TypeError, "out is a tuple, expected flashcupy.AttentionGrads"),
        (
            {"out": fc.AttentionGrads(dq=np.empty_like(Q)), "wrt": ("k",)},
            ValueError,
            "out.dq is given, but wrt does not",
        ),
        ({"out": fc.AttentionGrads(dq=np.empty_like(K))}, ValueError, "out.dq has shape"),
        ({"out": fc.AttentionGrads(dq=Q)}, ValueError, "out.dq shares memory with q"),
    ],
)
def test_backward(backend, residuals, change, error, message):
    call = {"dout": np.ones_like(Q), "residuals": residuals, **change}
    with pytest.raises(error, match=message):
        backend.api.attention_bwd(call.pop("dout"), call.pop("residuals"), **call)


@pytest.mark.parametrize("name", ["out", "lse"])
def test_gradients_must_not_overwrite_residuals(backend, name):
    x = np.ones((2, 1, 5, 1), np.float32)  # where even lse, (2, 1, 5), has room for a gradient
    memory = {"out": np.empty((2, 1, 5, 1), np.float32), "lse": np.empty((2, 1, 5), np.float32)}
    residuals = backend.api.attention_fwd(x, x, x, out=memory["out"], lse_out=memory["lse"])[1]
    grads = fc.AttentionGrads(dq=memory[name].reshape(x.shape))
    with pytest.raises(ValueError, match=rf"out\.dq shares memory with residuals\.{name}"):
        backend.api.attention_bwd(np.ones_like(x), residuals, out=grads)


def test_gradients_must_not_share_memory(backend, residuals):
    shared = np.empty_like(K)
    with pytest.raises(ValueError, match=r"out\.dv shares memory with out\.dk"):
        backend.api.attention_bwd(np.ones_like(Q), residuals, out=fc.AttentionGrads(dk=shared, dv=shared))


def test_wrt_may_be_any_iterable(backend, residuals):
    grads = backend.api.attention_bwd(np.ones_like(Q), residuals, wrt=(name for name in ("q", "v")))
    assert [g is not None for g in grads] == [True, False, True, False, False]


@pytest.mark.parametrize(("p", "what"), [(0.001, "nothing"), (0.999, "everything")])
def test_dropout_that_rounds_away_warns_the_caller(p, what):
    with pytest.warns(UserWarning, match=f"drops {what}") as caught:
        fc.attention(Q, K, K, dropout=p)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("standin", [((8, -1, 4), "float32"), ((8, 4), "no such dtype"), (("a",), "float32")])
def test_standins(standin):
    with pytest.raises(TypeError, match=r"the stand-in .* names no array"):
        fc.explain(standin, standin, standin)


def test_lse_out(backend):
    with pytest.raises(TypeError, match="lse_out has dtype float64, expected float32"):
        backend.api.attention_fwd(Q, K, K, lse_out=np.empty((2, 4, 5)))
    memory = np.empty(2 * 4 * 5 * 8, np.float32)
    with pytest.raises(ValueError, match="out shares memory with lse_out"):
        backend.api.attention_fwd(Q, K, K, out=memory.reshape(Q.shape), lse_out=memory[:40].reshape(2, 4, 5))


def test_from_arrays(backend, residuals):
    out, lse = backend.api.attention(Q, K, K, return_lse=True)
    with pytest.raises(ValueError, match="seed is None with dropout"):
        backend.api.AttentionResiduals.from_arrays(Q, K, K, out, lse, dropout=0.1)
    with pytest.raises(ValueError, match="lse has shape"):
        backend.api.AttentionResiduals.from_arrays(Q, K, K, out, lse[..., :2])
    with pytest.raises(ValueError, match="cu_seqlens_q and cu_seqlens_k go together"):
        backend.api.AttentionResiduals.from_arrays(Q[0], K[0], K[0], out[0], lse[0], cu_seqlens_q=[0, 5])
    with pytest.raises(ValueError, match="max_seqlen_q and max_seqlen_k belong to packed rows"):
        backend.api.AttentionResiduals.from_arrays(Q, K, K, out, lse, max_seqlen_q=7)
    with pytest.raises(ValueError, match="residuals come from attention_fwd"):
        backend.api.attention_varlen_bwd(out, residuals)
