"""The oracle against a computation row by row (torch's autograd for its gradients), SciPy and finite differences."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from naive import assert_close
from oracles import oracle
from rowwise import CASES, GQA, INF, TALL, DenseMask, chance, holes, normal, operands, rowwise

from flashcupy.reference import attention, attention_bwd, attention_weights

NAN = np.nan


def check(actual, expected, keys):
    assert_close(actual, expected, None, num_keys=keys)


@pytest.mark.parametrize("name", CASES)
def test_forward(name):
    shapes, options = CASES[name]
    q, k, v, _, _ = operands(shapes)
    out, lse = attention(q, k, v, **options)
    expected_out, expected_lse = rowwise(np, q, k, v, **options)
    check(out, expected_out, k.shape[-2])
    check(lse, expected_lse, k.shape[-2])


@pytest.mark.parametrize("with_dlse", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_autograd(name, with_dlse):
    torch = oracle("torch")
    shapes, options = CASES[name]
    *qkv, dout, dlse = operands(shapes)
    extra = {key: torch.tensor(options[key], requires_grad=True) for key in ("bias", "sinks") if key in options}
    leaves = [torch.tensor(x, requires_grad=True) for x in qkv]
    out, lse = rowwise(torch, *leaves, **(options | extra))
    sources = (out, lse) if with_dlse and lse.requires_grad else (out,)
    torch.autograd.backward(sources, [torch.tensor(x) for x in (dout, dlse)[: len(sources)]])
    grads = attention_bwd(dout, *qkv, **options, dlse=dlse if with_dlse else None)
    expected = {
        name: np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.numpy()
        for name, leaf in (dict(zip("qkv", leaves, strict=True)) | extra).items()
    }
    # Sums that cancel (dbias of a row that shares one bias is exactly 0) are as exact as their terms, not as their sum.
    atol = 64 * np.finfo(np.float64).eps * 3 * max(np.abs(x).max(initial=0) for x in expected.values())
    for name in ("q", "k", "v", "bias", "sinks"):
        grad = getattr(grads, "d" + name)
        if name in expected:
            np.testing.assert_allclose(grad, expected[name], rtol=0, atol=atol, err_msg=name, strict=True)
        else:
            assert grad is None


@pytest.mark.parametrize("name", ["plain", "softcap bias", "lengths causal", "no sink in one head", "everything"])
def test_gradients_equal_finite_differences(name):
    shapes, options = CASES[name]
    q, k, v, dout, dlse = operands(shapes)
    inputs = {"q": q, "k": k, "v": v} | {key: options[key] for key in ("bias", "sinks") if key in options}
    sees = attention_weights(q, k, **without_dropout(options)).sum(-1) > 0

    def loss():
        out, lse = attention(**(options | inputs))
        return (out * dout).sum() + (lse * dlse)[sees].sum()

    grads = attention_bwd(dout, **(options | inputs), dlse=np.where(sees, dlse, NAN))
    step = 1e-5
    for key, x in inputs.items():
        inputs[key] = moved = x.copy()
        numeric = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            if np.isfinite(x[at]):
                moved[at] = x[at] + step
                above = loss()
                moved[at] = x[at] - step
                numeric[at] = (above - loss()) / (2 * step)
                moved[at] = x[at]
        np.testing.assert_allclose(getattr(grads, "d" + key), numeric, rtol=0, atol=1e-7, err_msg=key)


def without_dropout(options):
    return {key: value for key, value in options.items() if key not in ("dropout", "seed")}


# ---- hidden rows -----------------------------------------------------------------------------------------------------


def test_a_row_without_keys_gives_zeros_and_no_gradient():
    q, k, v, dout, dlse = operands(TALL)
    out, lse = attention(q, k, v, causal=True)  # off = -3
    assert not out[..., :3, :].any()
    assert (lse[..., :3] == -INF).all()
    assert np.isfinite(lse[..., 3:]).all()
    sinks = np.array([0.25, -1.0])
    out, lse = attention(q, k, v, causal=True, sinks=sinks)
    assert not out[..., :3, :].any()
    np.testing.assert_array_equal(lse[..., :3], np.broadcast_to(sinks[:, None], (2, 2, 3)))
    grads = attention_bwd(dout, q, k, v, causal=True, sinks=sinks, dlse=dlse)
    assert not grads.dq[..., :3, :].any()
    others = attention_bwd(dout[..., 3:, :], q[..., 3:, :], k, v, causal=True, sinks=sinks, dlse=dlse[..., 3:])
    check(grads.dk, others.dk, 6)
    check(grads.dsinks, others.dsinks, 6)


@pytest.mark.parametrize("poison", [NAN, INF, -INF])
@pytest.mark.parametrize("how", ["lengths", "mask", "blocks", "bias"])
def test_what_nothing_sees_never_leaks(poison, how):
    q, k, v, dout, dlse = operands(GQA)
    rows, cols = np.arange(7) < 5, np.arange(9) < 6
    both = rows[:, None] & cols
    options = {
        "lengths": {"q_lengths": 5, "kv_lengths": 6},
        "mask": {"mask": both},
        "blocks": {"block_mask": DenseMask(both[None, None])},
        "bias": {"bias": np.where(both, 0.0, -INF)},
    }[how] | {"sinks": normal(4), "softcap": 3.0, "dropout": 0.2, "seed": 1, "alibi_slopes": np.ones(4)}
    poisoned = [x.copy() for x in (q, k, v, dout)]
    for x, hidden in zip(poisoned, (~rows, ~cols, ~cols, ~rows), strict=True):
        x[..., hidden, :] = poison
    bad_dlse = np.where(rows, dlse, poison)
    for clean, dirty in zip(attention(q, k, v, **options), attention(*poisoned[:3], **options), strict=True):
        np.testing.assert_array_equal(dirty, clean)
    clean = attention_bwd(dout, q, k, v, **options, dlse=dlse)
    dirty = attention_bwd(poisoned[3], *poisoned[:3], **options, dlse=bad_dlse)
    for one, other in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not clean.dq[..., ~rows, :].any()
    assert not clean.dk[..., ~cols, :].any()
    assert not clean.dv[..., ~cols, :].any()


@pytest.mark.parametrize("poison", [NAN, INF])
def test_keys_hidden_from_some_queries_reach_only_the_others(poison):
    q, k, v, _, _ = operands(GQA)
    bad = k.copy()
    bad[..., 5, :] = poison  # visible from row 3 on
    for clean, dirty in zip(attention(q, k, v, causal=True), attention(q, bad, v, causal=True), strict=True):
        np.testing.assert_array_equal(dirty[:, :, :3], clean[:, :, :3])
        assert np.isnan(dirty[:, :, 3:]).any()


@pytest.mark.parametrize("poison", [NAN, INF])
def test_values_hidden_from_some_queries_do_not_reach_their_dq(poison):
    q, k, v, dout, dlse = operands(GQA)
    bad = v.copy()
    bad[..., 5, :] = poison  # visible from row 3 on
    options = {"causal": True, "bias": normal(7, 9), "dlse": dlse}
    clean, dirty = (attention_bwd(dout, q, k, x, **options) for x in (v, bad))
    np.testing.assert_array_equal(dirty.dq[:, :, :3], clean.dq[:, :, :3])
    np.testing.assert_array_equal(dirty.dbias[:3], clean.dbias[:3])
    assert not np.isfinite(dirty.dq[:, :, 3:]).any()


def test_nan_in_bias_or_a_hidden_score_does_not_matter():
    q, k, v, dout, _ = operands(GQA)
    bias = normal(7, 9)
    mask = chance(7, 9)
    clean, dirty = (attention_bwd(dout, q, k, v, mask=mask, bias=np.where(mask, bias, hidden)) for hidden in (0.0, NAN))
    for one, other in zip(dirty[:4], clean[:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert not clean.dbias[~mask].any()


# ---- shapes and dtypes -----------------------------------------------------------------------------------------------


def test_two_dimensional_operands():
    q, k, v, dout, dlse = (x[0, 0] for x in operands(TALL))
    four = [x[None, None] for x in (q, k, v, dout, dlse)]
    options = {"causal": True, "mask": chance(9, 6)}
    out, lse = attention(q, k, v, **options)
    assert (out.shape, lse.shape) == ((9, 4), (9,))
    full_out, full_lse = attention(*four[:3], **options)
    np.testing.assert_array_equal(out, full_out[0, 0])
    np.testing.assert_array_equal(lse, full_lse[0, 0])
    grads = attention_bwd(dout, q, k, v, **options, dlse=dlse)
    full = attention_bwd(four[3], *four[:3], **options, dlse=four[4])
    for one, other in zip(grads[:3], full[:3], strict=True):
        np.testing.assert_array_equal(one, other[0, 0])
    np.testing.assert_array_equal(attention_weights(q, k), attention_weights(*four[:2])[0, 0])


def test_two_dimensional_query_has_one_head():
    q, k, v, dout, _ = (x[0] for x in operands(((1, 1, 9, 4), *TALL[1:])))
    out, lse = attention(q[0], k[:1], v[:1])
    assert (out.shape, lse.shape) == ((1, 9, 4), (1, 9))
    grads = attention_bwd(dout[:1], q[0], k[:1], v[0])
    assert [grad.shape for grad in grads[:3]] == [(9, 4), (1, 6, 4), (6, 4)]


ZERO_SIZES = [
    ((2, 4, 0, 5), (2, 2, 9, 5), (2, 2, 9, 3)),
    ((2, 4, 7, 5), (2, 2, 0, 5), (2, 2, 0, 3)),
    ((0, 4, 7, 5), (1, 2, 9, 5), (0, 2, 9, 3)),
    ((2, 4, 7, 5), (2, 2, 9, 5), (2, 2, 9, 0)),
    ((2, 0, 7, 5), (2, 2, 9, 5), (2, 2, 9, 3)),
    ((2, 0, 7, 5), (2, 0, 9, 5), (2, 0, 9, 3)),
]


@pytest.mark.parametrize("shapes", ZERO_SIZES)
def test_zero_sizes(shapes):
    q, k, v, dout, dlse = operands(shapes)
    (hq, sq), sk = q.shape[-3:-1], k.shape[-2]
    options = {"causal": True, "sinks": np.ones(hq), "bias": np.zeros((sq, sk)), "dropout": 0.5, "seed": 1}
    out, lse = attention(q, k, v, **options)
    assert out.shape == dout.shape
    if sk == 0:
        assert not out.any()
        assert (lse == 1).all()
    grads = attention_bwd(dout, q, k, v, **options, dlse=dlse)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape, (sq, sk), (hq,)]
    for grad in grads if 0 in (*dout.shape[:-1], sk) else ():
        assert not grad.any()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_any_float_dtype_is_computed_in_float64(dtype):
    low = [x.astype(dtype) for x in operands(GQA)]
    options = {"bias": holes(normal(7, 9)).astype(dtype), "sinks": normal(4).astype(dtype)}
    high = [x.astype(np.float64) for x in low]
    options64 = {key: x.astype(np.float64) for key, x in options.items()}
    q, k, v, dout, dlse = low
    results = *attention(q, k, v, **options), *attention_bwd(dout, q, k, v, **options, dlse=dlse)
    q, k, v, dout, dlse = high
    expected = *attention(q, k, v, **options64), *attention_bwd(dout, q, k, v, **options64, dlse=dlse)
    for one, other in zip(results, expected, strict=True):
        assert one.dtype == np.float64
        np.testing.assert_array_equal(one, other)


def test_dropout_needs_a_seed():
    q, k, v, dout, _ = operands(GQA)
    with pytest.raises(ValueError, match="seed: got None"):
        attention(q, k, v, dropout=0.5)
    with pytest.raises(ValueError, match="seed: got None"):
        attention_bwd(dout, q, k, v, dropout=0.5)


def test_seed_forms_agree():
    q, k, v, _, _ = operands(GQA)
    out, _ = attention(q, k, v, dropout=0.5, seed=6)
    for seed in ((6, 0), np.array([6, 0], np.uint64), np.uint64(6)):
        np.testing.assert_array_equal(attention(q, k, v, dropout=0.5, seed=seed)[0], out)
    assert (attention(q, k, v, dropout=0.5, seed=(6, 1))[0] != out).any()


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_weights_equal_scipy_softmax():
    special = pytest.importorskip("scipy.special", reason="compares with SciPy's softmax")
    q, k, _, _, _ = operands(GQA)
    bias = holes(normal(4, 7, 9), 0.2)
    scores = np.einsum("bhid,bhjd->bhij", q, k.repeat(2, axis=1)) / np.sqrt(5) + bias
    scores[..., np.arange(9) > np.arange(7)[:, None] + 2] = -INF
    check(attention_weights(q, k, causal=True, bias=bias), special.softmax(scores, axis=-1), 9)


@pytest.mark.parametrize("rows", [slice(2, 5), slice(None, None, 2), slice(-3, None), slice(4, 4), None])
@pytest.mark.parametrize("name", ["everything", "bias", "blocks per head", "lengths causal", "broadcast bias"])
def test_weights_of_some_rows(rows, name):
    shapes, options = CASES[name]
    q, k, v, _, _ = operands(shapes)
    options = without_dropout(options)
    whole = attention_weights(q, k, **options)
    out, _ = attention(q, k, v, **options)
    check(whole @ np.repeat(v, q.shape[-3] // k.shape[-3], axis=-3), out, k.shape[-2])
    part = whole if rows is None else whole[..., rows, :]
    check(attention_weights(q, k, **options, rows=rows), part, k.shape[-2])


def test_sinks_take_their_share_of_the_weights():
    q, k, _, _, _ = operands(GQA)
    weights = attention_weights(np.zeros_like(q), k, sinks=np.log([1.0, 9.0, 0.5, 3.0]))
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to([[9 / 10], [9 / 18], [9 / 9.5], [9 / 12]], (2, 4, 7)))
