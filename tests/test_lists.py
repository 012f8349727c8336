"""Block lists: rows of one head that visit equally many columns are computed as one stack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import FEATURES, Case, Sizes
from harness import check

import flashcupy as fc
from flashcupy.cpu import schedule

# Enough rows of blocks for stacks of several, enough heads that no task gets only some of them.
_SIZES = Sizes(batch=(4,), q_heads=4, kv_heads=2, q_len=180, kv_len=170, head_dim=8, v_dim=6)


def _lists(rng: np.random.Generator, sizes: Sizes, partial: bool) -> fc.BlockMask:
    shape = sizes.q_len, sizes.kv_len
    grid = [-(-n // 16) for n in shape]
    mask = fc.BlockMask.from_topk(rng.random((sizes.q_heads, *grid)), 3, shape, block_size=16)
    if not partial:
        return mask
    patterns = rng.random((sizes.q_heads, *shape)) < 0.7
    return mask & fc.BlockMask.from_dense(patterns, block_size=16)


@pytest.fixture
def seen_stacks(backend, monkeypatch):
    """Sizes of the stacks that were computed, and whether their columns were made in one step."""
    backend.requires("NumPy internals")
    seen = set()
    tiles, full_columns = schedule.ListSchedule.tiles, schedule.ListSchedule._full_columns

    def watched(self, cells):
        seen.add((len(cells.blocks) > 1, full_columns(self, cells) is not None))
        return tiles(self, cells)

    monkeypatch.setattr(schedule.ListSchedule, "tiles", watched)
    return seen


@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
@pytest.mark.parametrize("feature", [None, *(name for name in FEATURES if name != "blocks")])
def test_stacks_of_row_blocks(backend, monkeypatch, seen_stacks, feature, partial):
    monkeypatch.setitem(FEATURES, "lists", lambda rng, sizes, dtype: {"block_mask": _lists(rng, sizes, partial)})
    names = ("lists",) if feature is None else ("lists", feature)
    check(Case(names, "float64", _SIZES), backend)
    assert any(stacked for stacked, _ in seen_stacks)
    if feature is None:
        assert ((True, True) in seen_stacks) is not partial


def test_lists_of_several_tiles(backend, monkeypatch, seen_stacks):
    monkeypatch.setitem(FEATURES, "lists", lambda rng, sizes, dtype: {"block_mask": _lists(rng, sizes, True)})
    with backend.small_tiles():
        check(Case(("lists", "causal"), "float64", replace(_SIZES, q_len=400, kv_len=400)), backend)
    assert (True, False) in seen_stacks


@pytest.mark.parametrize("block_size", [16, 32, 64, 128, 256, 384, (16, 128), (128, 32), (256, 64)])
def test_block_sizes(backend, monkeypatch, block_size):
    def lists(rng, sizes, dtype):
        dense = rng.random((sizes.kv_heads, sizes.q_len, sizes.kv_len)) < 0.9
        dense[:, : sizes.q_len // 2, : sizes.kv_len // 3] = rng.random() < 0.5
        blocks = rng.random((1, 6, 6)) < 0.6
        keep = np.kron(blocks, np.ones((70, 90), np.bool_))[:, : sizes.q_len, : sizes.kv_len]
        return {"block_mask": fc.BlockMask.from_dense(dense & keep, block_size=block_size)}

    monkeypatch.setitem(FEATURES, "lists", lists)
    sizes = Sizes(batch=(1,), q_heads=2, kv_heads=2, q_len=400, kv_len=500, head_dim=8, v_dim=6)
    check(Case(("lists",), "float64", sizes), backend)
    with backend.small_tiles():
        check(Case(("lists", "causal"), "float64", sizes), backend)


def test_empty_blocks_are_not_read(backend):
    """A NaN in a key that only an unlisted block holds would show anywhere it was touched."""
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 2, 128, 8))
    blocks = np.ones((8, 8), np.bool_)
    blocks[:, 3] = False
    mask = fc.BlockMask.from_blocks(blocks, (128, 128), block_size=16)
    k[:, 48:64], v[:, 48:64] = np.nan, np.nan
    out, residuals = backend.api.attention_fwd(q, k, v, block_mask=mask)
    grads = backend.api.attention_bwd(np.ones_like(out), residuals)
    assert all(np.isfinite(x).all() for x in (out, residuals.lse, *grads[:3]))
    assert not grads.dk[:, 48:64].any()
    assert not grads.dv[:, 48:64].any()
