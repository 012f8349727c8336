"""The tensor-core backward through the API at its edges: bands, lengths, packed sequences, rows that see nothing.

What it computes with each option is in the tests of all backends.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import gradients
import numpy as np
import pytest
import tensor_cores
from cases import DTYPES, FEATURES, NUMBERS, Case, Sizes
from harness import check

import flashcupy as fc

_QUICK = ("float16", "float32", pytest.param("tf32", marks=pytest.mark.slow))  # bfloat16 goes float16's way


backend = tensor_cores.fixture()


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_any_scale(backend, scale, softcap, numbers):
    operands = gradients.operands(numbers)
    options = {"scale": scale, "softcap": softcap, "causal": True, **gradients.options(numbers)}
    gradients.require_right(gradients.of(backend.api, *operands, **options), *operands, **options)


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("features", [("causal",), ("top_left",), ("window", "sinks", "alibi")])
@pytest.mark.parametrize(("q_len", "kv_len"), [(90, 33), (1, 70), (70, 1), (33, 33), (32, 64)])
def test_shapes_of_the_band(backend, features, q_len, kv_len, numbers):
    sizes = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, head_dim=24, v_dim=24)
    check(Case(features, sizes=sizes, **NUMBERS[numbers]), backend)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("heads", [(6, 6), (6, 3), (6, 1)])
def test_query_heads_share_keys(backend, heads, deterministic):
    sizes = Sizes(q_heads=heads[0], kv_heads=heads[1], head_dim=16, v_dim=16)
    check(Case(("causal", "alibi"), "float16", sizes), backend, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("zero", ["q_len", "kv_len", "v_dim"])
def test_nothing_there(backend, zero, numbers, deterministic):
    operands = gradients.operands(numbers, **{zero: 0})
    grads = gradients.of(backend.api, *operands, deterministic=deterministic, **gradients.options(numbers))
    gradients.require_right(grads, *operands, **gradients.options(numbers))


@pytest.mark.parametrize("numbers", _QUICK)
def test_used_lengths_from_none_to_all(backend, numbers):
    operands = [
        np.ascontiguousarray(np.broadcast_to(x, (5, *x.shape)))
        for x in gradients.operands(numbers, head_dim=24, v_dim=24)
    ]
    options = {"q_lengths": np.array([0, 1, 45, 17, 33]), "kv_lengths": np.array([77, 0, 1, 16, 32]), "causal": True}
    dlse = np.random.default_rng(0).standard_normal((5, 2, 45)).astype(np.float32)
    for deterministic in (False, True):
        grads = gradients.of(
            backend.api, *operands, dlse=dlse, deterministic=deterministic, **gradients.options(numbers), **options
        )
        gradients.require_right(grads, *operands, dlse=dlse, **gradients.options(numbers), **options)


@pytest.mark.parametrize("numbers", _QUICK)
def test_operands_that_broadcast_over_the_batch(backend, numbers):
    q, k, v, dout = gradients.operands(numbers, batch=(3,))
    k, v = k[:1], v[0]
    grads = gradients.of(backend.api, q, k, v, dout, **gradients.options(numbers))
    gradients.require_right(grads, q, k, v, dout, **gradients.options(numbers))


def _one_order(backend):
    """Blocks of which several add to one sum of dq do so one after the other."""
    if backend.name == "cupy":
        return nullcontext()
    return backend.device.using(lane_order="forward", block_order="forward")


_STARTS_Q, _STARTS_K = np.array([1, 1, 2, 35, 36, 107]), np.array([3, 40, 40, 73, 74, 119])
_PACKED = ("causal", "top_left", "window", "softcap", "mask", "bias", "alibi", "sinks", "blocks", "dropout")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("feature", _PACKED)
def test_packed_sequences_have_the_gradients_of_a_padded_batch(backend, feature, numbers, deterministic):
    """The same bits, but for the sums of keys' blocks: those too in one order of lanes and blocks."""
    operands = gradients.operands(numbers, q_len=110, kv_len=120)
    sizes = Sizes(batch=(5,), q_heads=2, kv_heads=1, q_len=71, kv_len=45)
    options = FEATURES[feature](np.random.default_rng(4), sizes, operands[0].dtype) | gradients.options(numbers)
    starts = [_STARTS_Q, _STARTS_K, _STARTS_K, _STARTS_Q]
    q, k, v, dout = operands
    _, residuals = backend.api.attention_varlen_fwd(
        q, k, v, _STARTS_Q, _STARTS_K, max_seqlen_q=sizes.q_len, max_seqlen_k=sizes.kv_len, **options
    )
    with _one_order(backend):
        grads = backend.api.attention_bwd(dout, residuals, deterministic=deterministic)
    lengths = {"q_lengths": np.diff(_STARTS_Q), "kv_lengths": np.diff(_STARTS_K)}
    padded = []
    for x, own in zip(operands, starts, strict=True):
        padded.append(np.zeros((5, len(x), sizes.q_len if own is _STARTS_Q else sizes.kv_len, x.shape[-1]), x.dtype))
        for n, (start, end) in enumerate(itertools.pairwise(own)):
            padded[-1][n, :, : end - start] = x[:, start:end]
    with _one_order(backend):
        want = gradients.of(backend.api, *padded, deterministic=deterministic, **lengths, **options)
    # On a GPU blocks add to dq in whatever order they come.
    same = slice(1, 3) if backend.name == "cupy" and not deterministic else slice(3)
    for got, other, own in zip(grads[same], want[same], starts[same], strict=True):
        for n, (start, end) in enumerate(itertools.pairwise(own)):
            assert np.array_equal(got[:, start:end], other[n, :, : end - start])
        assert not got[:, : own[0]].any()
        assert not got[:, own[-1] :].any()


@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_from_the_output_and_lse_alone(backend, numbers, sinks):
    """Without the forward's statistics: rows that saw nothing are then known by their scores."""
    q, k, v, dout = gradients.operands(numbers)
    mask = np.random.default_rng(1).random((45, 77)) < 0.5
    mask[:3], mask[16:18], mask[40:] = False, False, False
    options = {"mask": mask, **({"sinks": np.array([0.5, -3.0], np.float32)} if sinks else {})}
    out, lse = backend.api.attention(q, k, v, return_lse=True, **options)
    residuals = (
        fc.AttentionResiduals.from_arrays if backend.name == "numpy" else backend.api.AttentionResiduals.from_arrays
    )
    dlse = np.random.default_rng(0).standard_normal(lse.shape).astype(np.float32)
    wrt = ("q", "k", "v", "sinks") if sinks else ("q", "k", "v")
    grads = backend.api.attention_bwd(dout, residuals(q, k, v, out, lse, **options), dlse=dlse, wrt=wrt)
    gradients.require_right(grads, q, k, v, dout, dlse=dlse, **options)
    assert not grads.dq[:, :3].any()


@pytest.mark.parametrize("numbers", [*_QUICK])
@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_scores_of_any_size(backend, size, numbers):
    """From an almost even softmax to one that a single key takes."""
    q, k, v, dout = gradients.operands(numbers, heads=8, q_len=64)
    q = (q * q.dtype.type(size)).astype(q.dtype)
    for deterministic in (False, True):
        grads = gradients.of(backend.api, q, k, v, dout, deterministic=deterministic, **gradients.options(numbers))
        gradients.require_right(grads, q, k, v, dout, **gradients.options(numbers))


@pytest.mark.parametrize(
    "numbers", ["bfloat16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("tf32", "float32"))]
)
@pytest.mark.parametrize("deterministic", [False, True])
def test_scores_so_large_that_lse_is_rounded(backend, numbers, deterministic):
    """All keys of most rows have one score, up to 1.2e7 in units of log2: exact in every dtype, as lse is not."""
    q, k, v, dout = gradients.operands(numbers, head_dim=24)
    rng = np.random.default_rng(5)
    sizes = 2.0**23 * rng.uniform(0.5, 1, (2, 45, 1)) * rng.choice([-1, 1], (2, 45, 1))
    large = np.eye(1, 24) * sizes.astype(DTYPES["bfloat16"])
    q[...] = np.where(np.arange(45)[:, None] % 3 == 0, q, large)
    k[..., 0] = 1
    options = {"scale": 1.0, "causal": True, **gradients.options(numbers)}
    grads = gradients.of(backend.api, q, k, v, dout, deterministic=deterministic, **options)
    gradients.require_right(grads, q, k, v, dout, **options)


def test_keys_that_there_are_not_add_nothing_to_dq(backend):
    """Rows of zeros have the score 0: where lse is far below, a weight that overflows."""
    q, k, v, dout = gradients.operands("float16", kv_len=40)
    q, k = np.abs(q) * 4, -np.abs(k) * 4
    for deterministic in (False, True):
        grads = gradients.of(backend.api, q, k, v, dout, deterministic=deterministic, scale=1.0)
        gradients.require_right(grads, q, k, v, dout, scale=1.0)
