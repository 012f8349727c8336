"""Packed sequences against the oracle, and against one call per sequence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from cases import DTYPES, FEATURES, Sizes, normal, pairs
from naive import assert_close, naive_varlen, naive_varlen_bwd

from flashcupy import BlockMask, reference

_CU_Q, _CU_K = [0, 20, 20, 21, 45, 52], [0, 33, 41, 41, 60, 95]
_Q_LEN, _K_LEN = 24, 35


def _options(features, rng, dtype):
    sizes = Sizes(batch=(5,), q_heads=4, kv_heads=2, q_len=_Q_LEN, kv_len=_K_LEN)
    options = {}
    for name in features:
        options |= FEATURES[name](rng, sizes, dtype)
    for name, cu in (("q_lengths", _CU_Q), ("kv_lengths", _CU_K)):
        if name in options:
            options[name] = np.minimum(options[name], np.diff(cu))
    return options


def _results(features, dtype, backend, draw):
    """(ours, the oracle's, the naive computation's) for out, lse and all gradients."""
    rng = np.random.default_rng([draw, sum(map(len, features))])
    wide = DTYPES[dtype]
    total_q, total_k = _CU_Q[-1] + 3, _CU_K[-1] + 2  # a few rows in no sequence
    shapes = (4, total_q, 16), (2, total_k, 16), (2, total_k, 6)
    q, k, v = (normal(rng, shape, wide) for shape in shapes)
    dout = normal(rng, (4, total_q, 6), wide)
    q[:, _CU_Q[-1] :], dout[:, _CU_Q[-1] :] = np.nan, np.nan
    k[:, _CU_K[-1] :], v[:, _CU_K[-1] :] = np.nan, np.nan
    options = _options(features, rng, wide)
    longest = {"max_seqlen_q": _Q_LEN, "max_seqlen_k": _K_LEN}
    args = (q, k, v, np.array(_CU_Q, np.int32), np.array(_CU_K))
    out, residuals = backend.api.attention_varlen_fwd(*args, **longest, **options)
    dlse = rng.standard_normal(residuals.lse.shape).astype(residuals.lse.dtype)
    wrt = ("q", "k", "v", *(name for name in ("bias", "sinks") if name in options))
    grads = backend.api.attention_varlen_bwd(dout, residuals, wrt=wrt, dlse=dlse)
    options |= longest
    truth = (
        *reference.attention_varlen(*args, **options),
        *reference.attention_varlen_bwd(dout, *args, **options, dlse=dlse),
    )
    coarse = (
        *naive_varlen(*args, wide, **options),
        *naive_varlen_bwd(dout, *args, wide, **options, dlse=dlse),
    )
    return zip((out, residuals.lse, *grads), truth, coarse, strict=True)


def _check(features, dtype, backend, draws=1):
    """Several draws are one sample for the bound, which compares largest errors: of few short rows they are luck."""
    pools = zip(*(_results(features, dtype, backend, draw) for draw in range(draws)), strict=True)
    for number, pool in enumerate(pools):
        got, truth, coarse = zip(*pool, strict=True)
        assert (got[0] is None) == (truth[0] is None)
        if got[0] is not None:
            assert_close(np.stack(got), np.stack(truth), np.stack(coarse), grad=number > 1, num_keys=_K_LEN)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain(backend, dtype):
    _check((), dtype, backend, draws=8)


# In float64, whose bound does not depend on the luck of a naive computation on a few short rows: here it is about which
# rows and columns meet, and accuracy in the other dtypes is that of dense calls.
@pytest.mark.parametrize("feature", FEATURES)
def test_each_option(backend, feature):
    with backend.small_tiles():
        _check((feature,), "float64", backend)


@pytest.mark.parametrize("features", pairs(), ids="+".join)
def test_each_pair_of_options(backend, features):
    with backend.small_tiles():
        _check(features, "float64", backend)


@pytest.mark.parametrize("feature", ["causal", "top_left", "window", "alibi", "bias", "mask", "dropout", "blocks"])
def test_each_sequence_is_a_call_of_its_own(backend, feature):
    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((h, n, 8)) for h, n in ((4, _CU_Q[-1]), (2, _CU_K[-1]), (2, _CU_K[-1])))
    options = _options((feature,), rng, np.dtype("float64"))
    packed = backend.api.attention_varlen(q, k, v, _CU_Q, _CU_K, max_seqlen_q=_Q_LEN, max_seqlen_k=_K_LEN, **options)
    ends = zip(itertools.pairwise(_CU_Q), itertools.pairwise(_CU_K), strict=True)
    for s, ((q0, q1), (k0, k1)) in enumerate(ends):
        own = dict(options)
        if feature in ("mask", "bias"):
            full = np.broadcast_to(own[feature], (5, 4, _Q_LEN, _K_LEN))
            own[feature] = full[s, :, : q1 - q0, : k1 - k0]
        elif feature == "alibi":
            own["alibi_slopes"] = own["alibi_slopes"][s]
        elif feature == "blocks":
            dense = own["block_mask"].to_dense()[0][:, : q1 - q0, : k1 - k0]
            own["block_mask"] = BlockMask.from_dense(dense, block_size=16)
        elif feature == "dropout" and s:
            continue  # the batch index is part of the random stream: only sequence 0 can be had by itself
        single = backend.api.attention(q[:, q0:q1], k[:, k0:k1], v[:, k0:k1], **own)
        assert_close(packed[:, q0:q1], single, None, num_keys=_K_LEN)


def test_default_longest_and_block_mask_per_sequence(backend):
    rng = np.random.default_rng(2)
    q, k, v = (rng.standard_normal((2, n, 8)) for n in (52, 95, 95))
    blocks = BlockMask.from_dense(rng.random((5, 1, _Q_LEN, _K_LEN)) < 0.5, block_size=16)
    out = backend.api.attention_varlen(q, k, v, _CU_Q, _CU_K, block_mask=blocks)
    want, _ = reference.attention_varlen(q, k, v, _CU_Q, _CU_K, block_mask=blocks)
    assert_close(out, want, None, num_keys=_K_LEN)


def test_no_sequences_and_empty_ones(backend):
    q, k = np.ones((2, 4, 3)), np.ones((2, 5, 3))
    for cu in ([0], [0, 0], [0, 0, 0]):
        out, lse = backend.api.attention_varlen(q, k, k, cu, cu, return_lse=True)
        assert not out.any()
        assert np.isneginf(lse).all()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cu_seqlens_q": [0, 3, 2]}, ValueError, "cu_seqlens_q falls from 3 to 2"),
        ({"cu_seqlens_q": [1, 3, 4]}, ValueError, "cu_seqlens_q starts at 1"),
        ({"cu_seqlens_q": [0, 3, 9]}, ValueError, "cu_seqlens_q ends at 9, expected at most the 6"),
        ({"cu_seqlens_q": [[0, 3]]}, ValueError, "cu_seqlens_q has shape"),
        ({"cu_seqlens_q": [0.0, 3.0]}, TypeError, "cu_seqlens_q has dtype float64"),
        ({"cu_seqlens_k": [0, 6]}, ValueError, "cu_seqlens_k has 2 entries, expected 3"),
        ({"max_seqlen_q": 2}, ValueError, "max_seqlen_q is 2, expected at least 3"),
        ({"max_seqlen_q": 2.5}, TypeError, "max_seqlen_q"),
        ({"kv_lengths": [4, 3]}, ValueError, "kv_lengths runs from 3 to 4"),
        ({"q": np.ones((1, 2, 6, 4))}, ValueError, "q has shape .* rows are packed"),
        ({"mask": np.ones((2, 2, 5, 3), np.bool_)}, ValueError, r"mask has shape .* broadcasts to \(2, 2, 3, 3\)"),
    ],
)
def test_bad_input(backend, change, error, message):
    x = np.ones((2, 6, 4))
    call = {"q": x, "k": x, "v": x, "cu_seqlens_q": [0, 3, 6], "cu_seqlens_k": [0, 3, 6], **change}
    with pytest.raises(error, match=message):
        backend.api.attention_varlen(**call)
