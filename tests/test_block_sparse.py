"""Random masks of every block size, shared by heads in every way, in every dtype, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cases import DTYPES, FEATURES, Case, Sizes
from harness import check

import flashcupy as fc

BLOCK_SIZES = (16, 32, 64, 128, 256, 384, (16, 128), (128, 32), (256, 64))
# Heads of the mask: one list for all, one for those that share keys, one for each of queries.
HEADS = (1, 2, 4)
_SIZES = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=300, kv_len=410, head_dim=16, v_dim=16)
# Each block size, with heads and dtypes in turn.
_NAMES = tuple(DTYPES)
_SAMPLE = [
    (size, HEADS[n % 3], _NAMES[(n + n // 3) % len(_NAMES)]) for n, size in enumerate((*BLOCK_SIZES, 16, 64, 32))
]


def _random_mask(rng: np.random.Generator, sizes: Sizes, heads: int, block_size: int | tuple[int, int]) -> fc.BlockMask:
    """FULL, PARTIAL and empty blocks, rows and columns of no block; another mask for each batch entry."""
    shape = (*sizes.batch, heads, sizes.q_len, sizes.kv_len)
    bq, bk = block_size if isinstance(block_size, tuple) else (block_size, block_size)
    grid = (*shape[:2], -(-shape[2] // bq), -(-shape[3] // bk))
    kinds = rng.integers(0, 3, grid)
    kinds[..., rng.integers(grid[2]), :] *= grid[2] < 3  # where there are few rows all of them see something
    kinds[..., rng.integers(grid[3])] *= grid[3] < 3
    spread = kinds.repeat(bq, -2).repeat(bk, -1)[..., : shape[2], : shape[3]]
    return fc.BlockMask.from_dense((spread == 1) | ((spread == 2) & (rng.random(shape) < 0.5)), block_size=block_size)


def _check(backend, monkeypatch, block_size, heads, case):
    monkeypatch.setitem(
        FEATURES, "lists", lambda rng, sizes, _: {"block_mask": _random_mask(rng, sizes, heads, block_size)}
    )
    check(case, backend)


@pytest.mark.parametrize(("block_size", "heads", "dtype"), _SAMPLE)
def test_random_masks(backend, monkeypatch, block_size, heads, dtype):
    with backend.small_tiles():
        _check(backend, monkeypatch, block_size, heads, Case(("lists", "causal"), dtype, _SIZES))


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_combination(backend, monkeypatch, block_size, heads):
    """In float64, whose bound is absolute; the sample above has the other dtypes."""
    case = Case(("lists",), "float64", replace(_SIZES, q_len=150, kv_len=210))
    _check(backend, monkeypatch, block_size, heads, case)
