"""Probes with block masks that are built on the device: their lists are those of the host, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import EmuBackend
from device_masks import dense_of, on_device

import flashcupy as fc
from emu.probes.agree import Probe
from flashcupy import BlockMask
from flashcupy.blocks.order import longest_first
from flashcupy.cuda import mask_plan

_SHAPE, _SIZE, _GRID = (37 * 16 - 3, 70 * 16 - 5), 16, (2, 37, 70)


def _same(backend: EmuBackend, mask: BlockMask, expected: BlockMask) -> None:
    for own, wanted, last_first in ((mask.lists, expected.lists, True), (mask.transposed, expected.transposed, False)):
        raw = own.read()
        for kind in ("full", "partial"):
            np.testing.assert_array_equal(getattr(raw, f"{kind}_indptr"), getattr(wanted, f"{kind}_indptr"))
        np.testing.assert_array_equal(raw.full_indices[: raw.n_full], wanted.full_indices)
        np.testing.assert_array_equal(raw.partial_indices[: raw.n_partial], wanted.partial_indices)
        np.testing.assert_array_equal(
            raw.bits[raw.bits_id[: raw.n_partial]], wanted.bits[wanted.bits_id], err_msg="patterns"
        )
        np.testing.assert_array_equal(backend.get(own.order), longest_first(wanted, last_first=last_first))


def of_blocks(backend: EmuBackend) -> None:
    rng = np.random.default_rng(0)
    tall = (600 * 16, 40)  # more rows than a block of threads scans at once
    for shape, grid in ((_SHAPE, _GRID), (tall, (1, 600, 3))):
        blocks = rng.random((2, *grid)) < rng.choice([0.02, 0.1, 0.9], (2, *grid[:2], 1))
        (own,) = on_device(backend, blocks)
        mask = BlockMask.from_blocks(own, shape, block_size=_SIZE)
        _same(backend, mask, BlockMask.from_blocks(blocks, shape, block_size=_SIZE))


def of_ids(backend: EmuBackend) -> None:
    rng = np.random.default_rng(1)
    ids = rng.random(_GRID).argsort(-1)[..., :40]
    ids[rng.random(ids.shape) < 0.3] = -1
    counts = rng.integers(0, 41, ids.shape[:-1])
    own_ids, own_counts = on_device(backend, ids, counts)
    mask = BlockMask.from_ids(own_ids, _SHAPE, counts=own_counts, block_size=_SIZE)
    _same(backend, mask, BlockMask.from_ids(ids, _SHAPE, counts=counts, block_size=_SIZE))
    mask.check()


def of_bad_ids(backend: EmuBackend) -> None:
    """Those that name no block are left out, and told."""
    ids = np.array([[0, 5, 1, -1], [9, 3, 3, 0], [2, -7, 1, 2**40]])
    good = np.array([[0, 5, 1, -1], [-1, 3, -1, 0], [-1, -1, -1, -1]])
    own_ids, own_counts = on_device(backend, ids, np.array([4, 9, -1]))
    mask = BlockMask.from_ids(own_ids, (40, 90), counts=own_counts, block_size=16)
    _same(backend, mask, BlockMask.from_ids(good, (40, 90), block_size=16))
    told = ""
    try:
        mask.check()
    except ValueError as error:
        told = str(error)
    assert told.startswith("4 ids or counts"), told


def of_topk(dtype: str, flags: bool) -> Probe:
    """As many as reach scores of zero, and as many as reach all."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(2)
        scores = rng.integers(-3, 4, _GRID).astype(dtype)
        scores[rng.random(_GRID) < 0.2] = np.nan
        scores[rng.random(_GRID) < 0.2] = -np.inf
        scores[rng.random(_GRID) < 0.1] = -0.0
        options = (
            {"allowed": (rng.random((2, 1, 140)) < 0.8)[..., ::2], "include": rng.random(_GRID[1:]) < 0.1}
            if flags
            else {}
        )
        own, *given = on_device(backend, scores, *options.values())
        for k in (9, 25, 60):
            mask = BlockMask.from_topk(own, k, _SHAPE, block_size=_SIZE, **dict(zip(options, given, strict=True)))
            _same(backend, mask, BlockMask.from_topk(scores, k, _SHAPE, block_size=_SIZE, **options))

    return run


def of_dense(block_size: tuple[int, int]) -> Probe:
    def run(backend: EmuBackend) -> None:
        dense = dense_of(np.random.default_rng(3), (2, 237, 1101))
        if block_size[1] > 64:
            dense[..., np.arange(1101) % block_size[1] < 64] = False
        (own,) = on_device(backend, dense)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mask_plan, "_MOST_BLOCKS", 5)  # each of which takes several pieces
            mask = BlockMask.from_dense(own, block_size=block_size)
        _same(backend, mask, BlockMask.from_dense(dense, block_size=block_size))

    return run


def _results(backend: EmuBackend, mask: BlockMask, dtype: Any, **options: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    q, k, v, dout = on_device(backend, *(rng.standard_normal((2, 2, 60, 8)).astype(dtype) for _ in range(4)))
    out, residuals = fc.attention_fwd(q, k, v, block_mask=mask, sinks=np.ones(2, np.float32), **options)
    wrt = ("q", "k", "v", "sinks", *options)
    grads = fc.attention_bwd(dout, residuals, wrt=wrt)._asdict()
    named = {"out": out, "lse": residuals.lse, **{name: x for name, x in grads.items() if x is not None}}
    return {name: backend.get(x) for name, x in named.items()}


def no_room(one_pass: bool) -> Probe:
    """Blocks beyond a capacity: NaN in the third and fourth row of blocks of the second head, and nowhere else."""

    def run(backend: EmuBackend) -> None:
        (own,) = on_device(backend, np.ones((2, 2, 4, 4), np.bool_))
        mask = BlockMask.empty((60, 60), capacity=58, block_size=16, batch=2, heads=2, device="cuda:0")
        BlockMask.from_blocks(own, (60, 60), block_size=16, out=mask)
        options = {} if one_pass else {"bias": on_device(backend, np.zeros((60, 60), np.float32))[0]}
        got = _results(backend, mask, np.float16 if one_pass else np.float32, **options)
        rows, head = np.zeros((2, 2, 60), np.bool_), np.zeros((2, 2, 60), np.bool_)
        rows[1, 1, 32:], head[1, 1] = True, True
        expected = {"out": rows, "lse": rows, "dk": head, "dv": head, "dq": head if one_pass else rows}
        expected |= {"dsinks": np.array([False, True]), "dbias": np.array(True)}
        for name, x in got.items():
            where = expected[name][..., None] if x.ndim == 4 else expected[name]
            np.testing.assert_array_equal(np.isnan(x), np.broadcast_to(where, x.shape), err_msg=name)

    return run


def no_room_for_patterns(backend: EmuBackend) -> None:
    (own,) = on_device(backend, np.tri(60, dtype=np.bool_))
    mask = BlockMask.empty((60, 60), capacity=9, partial_capacity=2, block_size=16, device="cuda:0")
    BlockMask.from_dense(own, block_size=16, out=mask)
    missing = np.isnan(_results(backend, mask, np.float32)["lse"])
    np.testing.assert_array_equal(missing, np.broadcast_to(np.arange(60) >= 32, (2, 2, 60)))
    dense = np.zeros((60, 60), np.bool_)
    dense[:16, 16:32], dense[16:32, :16] = np.random.default_rng(7).random((2, 16, 16)) < 0.5
    dense[:16, 23], dense[16:32, 7] = False, True
    (own,) = on_device(backend, dense)
    mask = BlockMask.empty((60, 60), capacity=0, partial_capacity=1, block_size=16, device="cuda:0")
    BlockMask.from_dense(own, block_size=16, out=mask)
    assert np.isnan(_results(backend, mask, np.float32)["dk"]).all(), "a key has the pattern of another block"


def wild(what: str) -> Probe:
    """Lists of any numbers: nothing outside the arrays is touched."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(5)
        (own,) = on_device(backend, dense_of(rng, (2, 2, 60, 60)))
        for scale in (3, 100, 2**31 - 1):
            mask = BlockMask.from_dense(own, block_size=16)
            for lists in (mask.lists, mask.transposed):
                for name in (f"full_{what}", f"partial_{what}") if what.startswith("ind") else (what,):
                    array = getattr(lists, name)._host
                    array[...] = rng.integers(-scale, scale, array.shape)
            with backend.device.using(detect_races=what != "order"):
                _results(backend, mask, np.float32)

    return run


def skewed(heads: int) -> Callable[[EmuBackend], None]:
    """Rows of very different length, each computed once, by whatever heads share them."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(6)
        blocks = rng.random((1, heads, 5, 5)) < rng.choice([0.2, 1.0], (1, heads, 5, 1))
        q, k, v = (rng.standard_normal((2, n, 70, 4)) for n in (4, 2, 2))
        mask = BlockMask.from_blocks(blocks, (70, 70), block_size=16)
        whole = np.broadcast_to(mask.to_dense().repeat(4 // heads, 1), (2, 4, 70, 70))
        own = on_device(backend, q, k, v)
        _, residuals = fc.attention_fwd(*own, block_mask=mask)
        _, expected = fc.attention_fwd(q, k, v, mask=whole)
        np.testing.assert_allclose(backend.get(residuals.out), expected.out, rtol=1e-12, atol=1e-12)
        grads = fc.attention_bwd(residuals.out, residuals)
        wanted = fc.attention_bwd(expected.out, expected)
        for got, want in zip(grads[:3], wanted[:3], strict=True):
            np.testing.assert_allclose(backend.get(got), want, rtol=1e-10, atol=1e-12)

    return run


GENERIC_MASKS: dict[str, Probe] = {
    "mask of blocks": of_blocks,
    "mask of ids": of_ids,
    "mask of bad ids": of_bad_ids,
    "mask of topk": of_topk("float32", False),
    "mask of topk with flags": of_topk("float16", True),
    "mask of topk in 64 bits": of_topk("float64", False),
    "mask of dense": of_dense((32, 16)),
    "mask of large blocks": of_dense((64, 128)),
    "no room": no_room(False),
    "no room for patterns": no_room_for_patterns,
    "wild starts": wild("indptr"),
    "wild patterns": wild("bits_id"),
    "wild order": wild("order"),
    "skewed lists": skewed(2),
    "skewed lists of query heads": skewed(4),
}
MMA_MASKS: dict[str, Probe] = {"no room for mma": no_room(True)}
