"""Small operands in device memory, whose values nobody reads back: shapes and strides are all there is to go by."""

from __future__ import annotations

import numpy as np
import pytest
from backends import EmuBackend
from naive import assert_close

import flashcupy as fc
from flashcupy import reference
from flashcupy.cuda import config

_BACKEND = EmuBackend()


@pytest.fixture
def device():
    with _BACKEND.active(), config.use_tiles("small"):
        yield _BACKEND.device


def _normal(*shape):
    return np.random.default_rng(shape).standard_normal(shape)


@pytest.mark.parametrize("shapes", [((1,), (2,)), ((2,), (1,)), ((), (2,))])
def test_lengths_of_another_shape_are_another_plan(device, shapes):
    q, k = _normal(2, 2, 20, 8), _normal(2, 2, 24, 8)
    own = device.from_host(q), device.from_host(k), device.from_host(k)
    for shape in shapes:
        lengths = np.array([24, 3])[: int(np.prod(shape))].reshape(shape)
        out = fc.attention(*own, kv_lengths=device.from_host(lengths))
        want, _ = reference.attention(q, k, k, kv_lengths=np.broadcast_to(lengths, (2,)))
        assert_close(out.get(), want, None, num_keys=24)


def test_a_seed_with_gaps_is_refused(device):
    x = device.from_host(_normal(1, 20, 8))
    words = device.from_host(np.array([7, 1000, 9], np.uint64))
    for seed in (words[::2], words[::-2]):
        with pytest.raises(ValueError, match=r"seed has strides .*neighbours"):
            fc.attention(x, x, x, dropout=0.5, seed=seed)
    expected = fc.attention(x, x, x, dropout=0.5, seed=(7, 1000)).get()
    assert np.array_equal(fc.attention(x, x, x, dropout=0.5, seed=words[:2]).get(), expected)


@pytest.mark.parametrize("rows", [0, 3])
def test_empty_keys_under_lengths_that_the_host_does_not_see(device, rows):
    """The grid follows from max_seqlen, which may be more than there is."""
    q, k = _normal(2, 40, 200), _normal(2, rows, 200)
    cu_q, cu_k = np.array([0, 20, 40], np.int32), np.array([0, rows, rows], np.int32)
    operands = [device.from_host(x) for x in (q, k, k, cu_q, cu_k)]
    out, residuals = fc.attention_varlen_fwd(*operands, max_seqlen_q=20, max_seqlen_k=20)
    grads = fc.attention_varlen_bwd(out, residuals)
    want, _ = reference.attention_varlen(q, k, k, cu_q, cu_k)
    assert_close(out.get(), want, None, num_keys=20)
    expected = reference.attention_varlen_bwd(out.get(), q, k, k, cu_q, cu_k)
    for got, truth in zip(grads[:3], expected[:3], strict=True):
        assert_close(got.get(), truth, None, grad=True, num_keys=40)


def test_sixteen_bit_lengths_and_matrices_of_lengths(device):
    q = device.from_host(_normal(2, 3, 1, 20, 8))
    with pytest.raises(TypeError, match="kv_lengths has dtype int16"):
        fc.attention(q, q, q, kv_lengths=device.from_host(np.ones(3, np.int16)))
    lengths = np.array([[3], [20]])
    got = fc.attention(q, q, q, kv_lengths=device.from_host(lengths)).get()
    want, _ = reference.attention(*(q.get(),) * 3, kv_lengths=np.broadcast_to(lengths, (2, 3)))
    assert_close(got, want, None, num_keys=20)
