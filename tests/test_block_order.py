"""Rows with many blocks first: no processor is left with a long row when all others are done."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from flashcupy import BlockMask
from flashcupy.blocks.order import longest_first

_PROCESSORS = 132


def _skewed(rng: np.random.Generator) -> BlockMask:
    """Some rows fifty times as long as the others, as global tokens make them."""
    share = np.where(rng.random((4, 256, 1)) < 0.03, 0.9, 0.02)
    return BlockMask.from_blocks(rng.random((4, 256, 256)) < share, (256 * 16, 256 * 16), block_size=16)


_MASKS = {
    "skewed": _skewed,
    "causal": lambda rng: BlockMask.causal((4096, 4096), block_size=32, heads=8),
    "bigbird": lambda rng: BlockMask.bigbird(
        (8192, 8192), block_size=64, window=3, n_global=2, n_random=3, rng=rng, heads=32
    ),
    "even": lambda rng: BlockMask.random((4096, 4096), 6, rng=rng, block_size=32, heads=4),
    "nothing": lambda rng: BlockMask.from_blocks(np.zeros((8, 8), np.bool_), (128, 128), block_size=16),
}


def _makespan(lengths: np.ndarray) -> int:
    """When the last is done, if each processor that is free takes the next row."""
    free = [0] * _PROCESSORS
    for length in lengths:
        heapq.heappush(free, heapq.heappop(free) + int(length))
    return max(free)


def _counts(lists) -> np.ndarray:
    return np.diff(lists.full_indptr) + np.diff(lists.partial_indptr)


@pytest.mark.parametrize("name", _MASKS)
def test_no_processor_is_left_with_a_long_row(name):
    """Within a twentieth of what no order can fall below."""
    mask = _MASKS[name](np.random.default_rng(0))
    for lists, last_first in ((mask.lists, True), (mask.transposed, False)):
        order, counts = longest_first(lists, last_first=last_first), _counts(lists)
        assert sorted(order) == list(range(len(counts)))
        least = max(counts.max(), -(-counts.sum() // _PROCESSORS))
        assert _makespan(counts[order]) <= 1.05 * least


def test_as_they_lie_rows_would_take_longer():
    blocks = np.zeros((256, 256), np.bool_)
    blocks[:, :4] = blocks[-12:] = True  # the long ones start when nearly all is done
    lists = BlockMask.from_blocks(blocks, (4096, 4096), block_size=16).lists
    counts = _counts(lists)
    assert _makespan(counts[longest_first(lists, last_first=False)]) == 256
    assert _makespan(counts) == 256 + 4


def test_rows_of_one_length_keep_their_order():
    lists = BlockMask.random((64, 64), 2, rng=0, block_size=16, heads=2).lists
    np.testing.assert_array_equal(longest_first(lists, last_first=False), np.arange(8))
    np.testing.assert_array_equal(longest_first(lists, last_first=True), [3, 2, 1, 0, 7, 6, 5, 4])
