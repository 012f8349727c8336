"""Attention with block masks on a device: the bits that masks of the host give, and NaN for what they lack."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from device_masks import DEVICES, dense_of, on_device

import flashcupy as fc
from flashcupy import BlockMask
from flashcupy.cuda.config import use_tiles


@pytest.fixture(params=DEVICES)
def backend(request):
    with request.param.active(), use_tiles("small"):
        yield request.param


def _dtype(backend: Any) -> Any:
    return np.float16 if backend.name == "emu_sm80" else np.float32


def _operands(backend: Any, rng: np.random.Generator, q_shape: tuple[int, ...], kv_shape: tuple[int, ...]) -> list[Any]:
    shapes = (q_shape, kv_shape, kv_shape, q_shape)
    return on_device(backend, *((rng.standard_normal(shape)).astype(_dtype(backend)) for shape in shapes))


def _compute(backend: Any, operands: list[Any], mask: BlockMask, deterministic: bool, **options: Any) -> dict[str, Any]:
    q, k, v, dout = operands
    out, residuals = fc.attention_fwd(q, k, v, block_mask=mask, **options)
    wrt = ("q", "k", "v", *(name for name in ("bias", "sinks") if name in options))
    grads = fc.attention_bwd(dout, residuals, wrt=wrt, deterministic=deterministic)
    named = {"out": out, "lse": residuals.lse, **{name: x for name, x in grads._asdict().items() if x is not None}}
    return {name: backend.get(x) for name, x in named.items()}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_same_bits_as_with_a_mask_of_the_host(backend, heads, batch):
    """Rows are computed in another order, from lists whose patterns are stored otherwise."""
    rng = np.random.default_rng(heads)
    size = (16, 32) if heads == 2 else 32
    operands = _operands(backend, rng, (2, 4, 70, 8), (2, 2, 90, 8))
    dense = dense_of(rng, (batch, heads, 70, 90))
    (own,) = on_device(backend, dense)
    results = [
        _compute(backend, operands, mask, True, causal=True, sinks=np.ones(4, np.float32))
        for mask in (BlockMask.from_dense(own, block_size=size), BlockMask.from_dense(dense, block_size=size))
    ]
    for name, x in results[0].items():
        np.testing.assert_array_equal(x, results[1][name], err_msg=name)
        assert np.isfinite(x[x != -np.inf]).all()


def test_packed_sequences(backend):
    rng = np.random.default_rng(5)
    q, k, v, dout = _operands(backend, rng, (2, 80, 8), (2, 75, 8))
    cu_q, cu_k = np.array([0, 33, 33, 70]), np.array([0, 20, 30, 75])
    dense = dense_of(rng, (3, 2, 40, 50))
    (own,) = on_device(backend, dense)
    results = []
    for mask in (BlockMask.from_dense(own, block_size=16), BlockMask.from_dense(dense, block_size=16)):
        _, residuals = fc.attention_varlen_fwd(
            q, k, v, cu_q, cu_k, max_seqlen_q=40, max_seqlen_k=50, block_mask=mask, causal=True
        )
        grads = fc.attention_varlen_bwd(dout, residuals, deterministic=True)
        results.append([backend.get(x) for x in (residuals.out, residuals.lse, *grads[:3])])
    for own_result, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(own_result, expected)


def test_a_mask_is_rewritten_between_calls(backend):
    rng = np.random.default_rng(6)
    operands = _operands(backend, rng, (2, 64, 8), (2, 64, 8))
    scores = rng.random((2, 2, 4, 4)).astype(np.float32)
    mask = BlockMask.empty((64, 64), capacity=16, block_size=16, heads=2, device="cuda:0")
    for step, own in enumerate(on_device(backend, *scores)):
        BlockMask.from_topk(own, 1 + step, (64, 64), block_size=16, out=mask)
        expected = BlockMask.from_topk(scores[step], 1 + step, (64, 64), block_size=16)
        results, wanted = (_compute(backend, operands, m, True) for m in (mask, expected))
        for name, x in results.items():
            np.testing.assert_array_equal(x, wanted[name], err_msg=name)


@pytest.mark.parametrize("deterministic", [True, False])
def test_rows_that_a_capacity_has_no_room_for_are_nan(backend, deterministic):
    """All of what depends on them is, and nothing else: rows, keys that they see, and sums over rows."""
    rng = np.random.default_rng(7)
    operands = _operands(backend, rng, (2, 4, 60, 8), (2, 2, 60, 8))
    options = {"sinks": np.ones(4, np.float32), "bias": on_device(backend, np.zeros((60, 60), np.float32))[0]}
    blocks = np.ones((2, 4, 4), np.bool_)
    blocks[1, 2:, 0] = False  # a key block that only complete rows see, listed before there is no more room
    (own,) = on_device(backend, blocks)
    complete = BlockMask.from_blocks(own, (60, 60), block_size=16)
    mask = BlockMask.empty((60, 60), capacity=16 + 9, block_size=16, heads=2, device="cuda:0")
    BlockMask.from_blocks(own, (60, 60), block_size=16, out=mask)
    got = _compute(backend, operands, mask, deterministic, **options)
    expected = _compute(backend, operands, complete, deterministic, **options)
    rows, keys = np.zeros((2, 4, 60), np.bool_), np.zeros((2, 2, 60), np.bool_)
    rows[:, 2:, 32:] = True  # 8 blocks in two rows of the second list, and one of three in the third
    keys[:, 1, 16:] = True
    one_pass = backend.name == "emu_sm80" and not deterministic
    missing = {"out": rows, "lse": rows, "dk": keys, "dv": keys, "dq": rows.copy(), "dbias": True, "dsinks": False}
    missing["dsinks"] = np.array([False, False, True, True])
    if one_pass:  # which keys were lost is not known to rows
        missing["dq"][:, 2:] = True
    for name, x in got.items():
        where = np.broadcast_to(missing[name] if x.ndim < 4 else np.asarray(missing[name])[..., None], x.shape)
        assert np.isnan(x[where]).all(), name
        if name in ("out", "lse") or deterministic:
            np.testing.assert_array_equal(x[~where], expected[name][~where], err_msg=name)
        assert not np.isnan(x[~where]).any(), name


def test_no_room_for_partial_blocks(backend):
    rng = np.random.default_rng(8)
    operands = _operands(backend, rng, (2, 40, 8), (2, 40, 8))
    (own,) = on_device(backend, np.tri(40, dtype=np.bool_))
    mask = BlockMask.empty((40, 40), capacity=9, partial_capacity=1, block_size=16, device="cuda:0")
    BlockMask.from_dense(own, block_size=16, out=mask)
    got = _compute(backend, operands, mask, True)
    for name, x in got.items():
        per_row = np.isnan(x).all(axis=-1) if x.ndim == 3 else np.isnan(x)
        assert per_row[:, 16:].all(), name
        if name in ("out", "lse", "dq"):
            assert not per_row[:, :16].any(), name


def test_keys_of_patterns_without_room_are_nan(backend):
    """A block has the pattern of another one in the lists of keys: what that hides, the lost one may show."""
    rng = np.random.default_rng(11)
    operands = _operands(backend, rng, (1, 32, 8), (1, 32, 8))
    dense = np.zeros((32, 32), np.bool_)
    dense[:16, 16:], dense[16:, :16] = rng.random((2, 16, 16)) < 0.5
    dense[:16, 23], dense[16:, 7] = False, True
    (own,) = on_device(backend, dense)
    mask = BlockMask.empty((32, 32), capacity=0, partial_capacity=1, block_size=16, device="cuda:0")
    BlockMask.from_dense(own, block_size=16, out=mask)
    for deterministic in (True, False):
        got = _compute(backend, operands, mask, deterministic)
        assert np.isnan(got["dk"]).all()
        assert np.isnan(got["dv"]).all()


def test_the_kernel_that_is_told_is_that_of_attention(backend):
    q, k, v, _ = _operands(backend, np.random.default_rng(1), (2, 32, 8), (2, 32, 8))
    mask = BlockMask.empty((32, 32), capacity=4, block_size=16, device="cuda:0")
    assert fc.explain(q, k, v, block_mask=mask).config.startswith("fwd_")


@pytest.mark.parametrize("what", ["indptr", "indices", "bits_id", "order"])
def test_lists_that_something_else_has_written_to_reach_no_other_memory(backend, what):
    """Whatever the numbers in them are; the results are nobody's business."""
    if not backend.name.startswith("emu"):
        pytest.skip("the emulator tells which memory was touched")
    rng = np.random.default_rng(9)
    operands = _operands(backend, rng, (2, 70, 8), (2, 70, 8))
    (own,) = on_device(backend, dense_of(rng, (2, 70, 70)))
    for scale in (3, 100, 2**31 - 1):
        mask = BlockMask.from_dense(own, block_size=16)
        for lists in (mask.lists, mask.transposed):
            names = (f"full_{what}", f"partial_{what}") if what.startswith("ind") else (what,)
            for name in names:
                array = getattr(lists, name)._host
                array[...] = rng.integers(-scale, scale, array.shape)
        # Where an order names a row twice, two blocks write the same.
        with backend.device.using(detect_races=what != "order"):
            for deterministic in (True, False):
                _compute(backend, operands, mask, deterministic)


def test_a_mask_elsewhere_is_refused(backend):
    q, k, v, _ = _operands(backend, np.random.default_rng(0), (2, 32, 8), (2, 32, 8))
    mask = BlockMask.causal((32, 32), block_size=16, device="cuda:0")
    host = np.zeros((2, 32, 8), np.float32)
    with pytest.raises(ValueError, match="block_mask is on cuda:0, expected cpu, where q is, or the host"):
        fc.attention(host, host, host, block_mask=mask)
    for wrong, words in (
        (BlockMask.causal((32, 48), device="cuda:0"), "covers"),
        (BlockMask.causal((32, 32), heads=3, device="cuda:0"), "has 3 heads"),
        (BlockMask.causal((32, 32), batch=2, device="cuda:0"), "has batch 2"),
    ):
        with pytest.raises(ValueError, match=words):
            fc.attention(q, k, v, block_mask=wrong)


def test_values_are_checked_where_asked_for(backend, monkeypatch):
    monkeypatch.setenv("FLASHCUPY_CHECK", "1")
    q, k, v, _ = _operands(backend, np.random.default_rng(1), (2, 32, 8), (2, 32, 8))
    (blocks,) = on_device(backend, np.ones((2, 2), np.bool_))
    mask = BlockMask.empty((32, 32), capacity=3, block_size=16, device="cuda:0")
    BlockMask.from_blocks(blocks, (32, 32), block_size=16, out=mask)
    with pytest.raises(ValueError, match=r"4 FULL blocks, and room for 3 \(capacity\)"):
        fc.attention(q, k, v, block_mask=mask)
