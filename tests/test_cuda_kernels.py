"""What the API's tests do not ask of the kernels: same bits in any order, exact dropout, clamping, huge strides."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
from backends import EmuBackend
from emu.arrays import EmuArray

import flashcupy as fc
from flashcupy.cuda import config
from flashcupy.philox import keep_mask, keep_scale, keep_threshold

_BACKEND = EmuBackend()


@pytest.fixture
def device():
    with _BACKEND.active(), config.use_tiles("small"):
        yield _BACKEND.device


def _normal(*shape, dtype=np.float32):
    return np.random.default_rng(shape).standard_normal(shape).astype(dtype)


def _results(device, **options):
    q, k, v, dout = (
        device.from_host(x)
        for x in (_normal(2, 4, 40, 8), _normal(2, 2, 70, 8), _normal(2, 2, 70, 6), _normal(2, 4, 40, 6))
    )
    own = {name: device.from_host(x) if name in ("mask", "bias") else x for name, x in options.items()}
    out, residuals = fc.attention_fwd(q, k, v, **own)
    wrt = ("q", "k", "v", *(name for name in ("bias", "sinks") if name in options))
    grads = fc.attention_bwd(dout, residuals, wrt=wrt, dlse=device.from_host(_normal(2, 4, 40)))
    return [x.get() for x in (out, residuals.lse, *grads) if x is not None]


@pytest.mark.slow
def test_the_same_bits_in_every_order(device):
    blocks = fc.BlockMask.from_dense(_normal(40, 70) > 0, block_size=16)
    options = {
        "bias": _normal(70),
        "sinks": _normal(4),
        "dropout": 0.2,
        "seed": 3,
        "block_mask": blocks,
        "causal": True,
    }
    with device.using(lane_order="forward", block_order="forward"):
        first = _results(device, **options)
    for lanes, order in (("reverse", "reverse"), ("random", "random"), ("random", "forward")):
        with device.using(lane_order=lanes, block_order=order, seed=5):
            for a, b in zip(first, _results(device, **options), strict=True):
                assert np.array_equal(a, b)


@pytest.mark.parametrize("seed", [(7, 0), (2**64 - 1, 2**63 + 5)])
def test_dropout_keeps_what_numpy_keeps(device, seed):
    """With scores of 0 and the identity for v, the output is the keep mask itself."""
    rows, keys, heads, batch, p = 37, 64, 2, 2, 0.3
    k = keep_threshold(p)
    zeros = np.zeros((batch, heads, rows, 4), np.float32)
    v = np.broadcast_to(np.eye(keys, dtype=np.float32), (batch, heads, keys, keys))
    words = device.from_host(np.array(seed, np.uint64))
    for given in (seed, words):
        q, key, value = (device.from_host(x) for x in (zeros, np.zeros((batch, heads, keys, 4), np.float32), v))
        out, residuals = fc.attention_fwd(q, key, value, dropout=p, seed=given)
        expected = [[keep_mask(k, *seed, b, h, (0, rows), (0, keys)) for h in range(heads)] for b in range(batch)]
        assert np.array_equal(out.get() > 0, expected)
        assert np.allclose(out.get(), np.array(expected) * keep_scale(k) / keys)
        # dv of a constant upstream counts, column by column, what was kept: the backward draws the same mask.
        grads = fc.attention_bwd(device.from_host(np.ones_like(out.get())), residuals, wrt=("v",))
        assert np.allclose(grads.dv.get()[..., 0], np.sum(expected, axis=2) * keep_scale(k) / keys)


@pytest.mark.parametrize("lengths", [[-5, 3], [10**9, -(10**9)], [2**31 - 1, 41]])
def test_lengths_in_device_memory_are_clamped(device, lengths):
    q, k = device.from_host(_normal(2, 2, 40, 8)), device.from_host(_normal(2, 2, 70, 8))
    own = device.from_host(np.array(lengths, np.int64))
    out, residuals = fc.attention_fwd(q, k, k, kv_lengths=own, q_lengths=own, causal=True)
    fc.attention_bwd(out, residuals)
    clamped = {"kv_lengths": np.clip(lengths, 0, 70), "q_lengths": np.clip(lengths, 0, 40)}
    assert np.array_equal(out.get(), fc.attention(q, k, k, **clamped, causal=True).get())


@pytest.mark.parametrize("cu", [[0, 90, 20, 60], [-7, 5, 10**6, 3], [0, 20, 40, 60], [60, 40, 20, 0]])
def test_packing_in_device_memory_is_clamped(device, cu):
    """Whatever it says, no row outside the arrays is touched: the emulator would stop.

    Sequences that overlap write the same rows, which is the caller's race.
    """
    q, k = device.from_host(_normal(2, 60, 8)), device.from_host(_normal(2, 60, 8))
    own = device.from_host(np.array(cu, np.int32))
    with device.using(detect_races=cu == sorted(cu)):
        out, residuals = fc.attention_varlen_fwd(q, k, k, own, own, max_seqlen_q=25, max_seqlen_k=25)
        fc.attention_varlen_bwd(out, residuals)
    if cu == sorted(cu):
        expected = fc.attention_varlen(q, k, k, cu, cu).get()
        assert np.array_equal(out.get(), expected)


_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # named from Python 3.13 on


def test_strides_beyond_32_bits(device):
    """Rows and heads gigabytes apart, in memory that is reserved but mostly never touched."""
    apart, rows, dim = 3 << 30, 3, 4
    memory = np.frombuffer(
        mmap.mmap(-1, 2 * rows * apart, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE), np.uint8
    )
    strides = (rows * apart, apart, 4)
    host = np.ndarray((2, rows, dim), np.float32, memory, 0, strides)
    host[...] = _normal(2, rows, dim)
    far = EmuArray(host, device)
    near = device.from_host(host)
    expected, residuals = fc.attention_fwd(near, near, near)
    out, far_residuals = fc.attention_fwd(far, far, far)
    assert np.array_equal(out.get(), expected.get())
    for a, b in zip(fc.attention_bwd(out, far_residuals)[:3], fc.attention_bwd(expected, residuals)[:3], strict=True):
        assert np.array_equal(a.get(), b.get())


def test_blocks_that_are_not_listed_cost_nothing(device):
    x = device.from_host(_normal(1, 256, 8))
    accesses = []
    for mask in (np.ones((16, 16), np.bool_), np.eye(16, dtype=np.bool_)):
        fc.attention(x, x, x, block_mask=fc.BlockMask.from_blocks(mask, (256, 256), block_size=16))
        accesses.append(device.accesses)
    assert accesses[1] < accesses[0] / 4  # one block of sixteen, two to a tile; the rest is loading and storing rows


def test_a_full_tile_evaluates_no_mask(device):
    """With a mask of FULL blocks no bit pattern is read: there is none."""
    mask = fc.BlockMask.from_blocks(np.ones((4, 4), np.bool_), (64, 64), block_size=16)
    x = device.from_host(_normal(1, 64, 8))
    fc.attention(x, x, x, block_mask=mask)
    full = device.accesses
    fc.attention(x, x, x, block_mask=mask, kv_lengths=63)
    assert full < device.accesses
