"""Set algebra and re-cuts, against the same operations on dense masks."""

import tracemalloc

import numpy as np
import pytest
from block_mask_cases import BLOCK_SIZES, SHAPES, assert_lists, assert_sees, pair, scattered
from hypothesis import given, settings
from hypothesis import strategies as st

from flashcupy.block_mask import BlockMask

LAWS = settings(max_examples=30, deadline=None)
LONG = (131072, 131072)


@st.composite
def masks(draw, count):
    """That many masks of one shape and block size, with their dense arrays."""
    shape = draw(st.tuples(st.integers(0, 150), st.integers(0, 150)))
    leading = draw(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]))
    block_size = draw(st.sampled_from(BLOCK_SIZES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense = [scattered(rng, shape, block_size, leading) for _ in range(count)]
    return [BlockMask.from_dense(d, block_size=block_size) for d in dense], dense


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_operators_make_the_documented_lists(shape, block_size):
    rng = np.random.default_rng(1)
    a, b = (scattered(rng, shape, block_size, (2, 1)) for _ in range(2))
    mask_a, mask_b = (BlockMask.from_dense(d, block_size=block_size) for d in (a, b))
    assert_lists(mask_a & mask_b, a & b)
    assert_lists(mask_a | mask_b, a | b)
    assert_lists(~mask_a, ~a)


@given(masks(2))
@LAWS
def test_operators(case):
    (a, b), (dense_a, dense_b) = case
    assert_sees(a & b, dense_a & dense_b)
    assert_sees(a | b, dense_a | dense_b)
    assert_sees(~a, ~dense_a)


@given(masks(3))
@LAWS
def test_laws(case):
    (a, b, c), _ = case
    assert (~~a).equals(a)
    assert (a & a).equals(a)
    assert (a | a).equals(a)
    assert (a & b).equals(b & a)
    assert (a | b).equals(b | a)
    assert (~(a & b)).equals(~a | ~b)
    assert (a & (b | c)).equals((a & b) | (a & c))
    assert (a | (b & c)).equals((a | b) & (a | c))
    assert (a & ~a).density == 0
    assert (a & b).mT.equals(a.mT & b.mT)


@given(masks(1), st.data())
@LAWS
def test_rows(case, data):
    (mask,), (dense,) = case
    start = data.draw(st.integers(0, dense.shape[2]))
    stop = data.draw(st.integers(start, dense.shape[2]))
    part = mask.rows(start, stop)
    assert part.block_size == mask.block_size
    assert_sees(part, dense[:, :, start:stop])


@given(masks(1), st.sampled_from([*BLOCK_SIZES, 128, (16, 384), (384, 32)]))
@LAWS
def test_with_block_size(case, block_size):
    (mask,), (dense,) = case
    again = mask.with_block_size(block_size)
    assert again.block_size == pair(block_size)
    assert_sees(again, dense)
    assert again.with_block_size(mask.block_size).equals(mask)


def test_rows_aligned_and_not_and_all_of_them():
    rng = np.random.default_rng(0)
    dense = scattered(rng, (200, 150), 32)
    mask = BlockMask.from_dense(dense, block_size=32)
    assert mask.rows(0, 200).equals(mask)
    assert_lists(mask.rows(64, 128), dense[:, :, 64:128])
    assert_lists(mask.rows(65, 199), dense[:, :, 65:199])
    assert_lists(mask.rows(7, 7), dense[:, :, 7:7])


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 2), (0, 11)])
def test_rows_outside_the_mask(start, stop):
    with pytest.raises(ValueError, match="start"):
        BlockMask.causal((10, 10)).rows(start, stop)


def test_masks_that_do_not_match():
    mask = BlockMask.causal((100, 100))
    for other in (
        BlockMask.causal((100, 101)),
        BlockMask.causal((100, 100), heads=2),
        BlockMask.causal((100, 100), block_size=32),
    ):
        with pytest.raises(ValueError, match="& needs masks of one shape and block_size"):
            mask & other
        with pytest.raises(ValueError, match=r"\| needs masks of one shape and block_size"):
            mask | other


def test_recuts_in_chunks(monkeypatch):
    dense = scattered(np.random.default_rng(0), (300, 200), 32, (2, 1))
    monkeypatch.setattr("flashcupy.blocks.bits.CHUNK_ELEMENTS", 5000)
    mask = BlockMask.from_dense(dense, block_size=32)
    assert_sees(mask.with_block_size((128, 16)), dense)
    assert_sees(mask.rows(13, 277), dense[:, :, 13:277])


def test_algebra_keeps_the_patterns_few():
    window, tokens = BlockMask.sliding_window(LONG, 1000, 0), BlockMask.global_tokens(LONG, 10)
    tracemalloc.start()
    try:
        both = (window | tokens) & ~(window & tokens)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(both.bits) < 20
    assert peak < 64 * 2**20 * 4  # ~ lists every block it does not see: 4M of them
