"""Masks of fixed capacity and address, rewritten through out=."""

import copy
import pickle

import numpy as np
import pytest
from block_mask_cases import ARRAYS, assert_sees, scattered

from flashcupy.block_mask import BlockMask


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_copies_of_a_buffered_mask_are_snapshots():
    buffered = BlockMask.empty((64, 64), block_size=16, capacity=16)
    before = [copy.copy(buffered), pickle.loads(pickle.dumps(buffered)), buffered.mT, buffered[:, :]]
    BlockMask.from_blocks(np.ones((4, 4), bool), (64, 64), block_size=16, out=buffered)
    assert buffered.density == 1
    assert [copied.density for copied in before] == [0, 0, 0, 0]
    assert copy.deepcopy(buffered).equals(buffered)


def pointers(mask):
    arrays = [getattr(lists, name) for lists in (mask, mask.transposed) for name in ARRAYS]
    return [array.__array_interface__["data"][0] for array in arrays]


def test_empty_is_rewritten_at_fixed_addresses(rng):
    shape, kw = (100, 130), {"block_size": 32}
    out = BlockMask.empty(shape, **kw, batch=2, heads=3, capacity=120, partial_capacity=120)
    assert (out.capacity, out.partial_capacity) == (120, 120)
    assert_sees(out, np.zeros((2, 3, *shape), bool))
    before = pointers(out)
    scores, dense = rng.random((2, 3, 4, 5)), scattered(rng, shape, 32, (2, 3))
    ids = np.tile([1, 4, -1], (2, 3, 4, 1))
    for make in (
        lambda **out: BlockMask.from_dense(dense, **kw, **out),
        lambda **out: BlockMask.from_blocks(scores > 0.5, shape, **kw, **out),
        lambda **out: BlockMask.from_topk(scores, 2, shape, **kw, **out),
        lambda **out: BlockMask.from_ids(ids, shape, **kw, **out),
        lambda **out: BlockMask.from_dense(dense[::-1], **kw, **out),
    ):
        assert make(out=out) is out
        assert out.equals(make())
        assert out.mT.equals(make().mT)
        assert_sees(out, make().to_dense())
        assert (out & make()).equals(make())
        assert out.rows(3, 90).equals(make().rows(3, 90))
        assert str(out) == str(make())
        assert out.stats() == make().stats()
        assert pointers(out) == before
    assert len(out.full_indices) == 120
    for name in ARRAYS:
        assert not getattr(out, name).flags.writeable


def test_without_buffers_of_their_own_transposed_lists_are_renewed():
    out = BlockMask.empty((64, 64), block_size=16, capacity=16, transposed=False)
    assert out.transposed.n_full == 0
    BlockMask.from_ids([[0], [0], [0], [1]], (64, 64), block_size=16, out=out)
    assert out.transposed.full_indptr.tolist() == [0, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("words", "dense", "block_size"),
    [
        ("out holds 2 FULL blocks .*got 3", np.tri(2, dtype=bool).repeat(32, 0).repeat(32, 1), 32),
        ("out holds 1 PARTIAL blocks .*got 2", np.tri(64, dtype=bool), 32),
        ("out must be a mask of shape", np.zeros((64, 65), bool), 32),
        ("out must be a mask of shape", np.zeros((2, 64, 64), bool), 32),
        ("out must be a mask of shape", np.zeros((64, 64), bool), 64),
    ],
)
def test_nothing_is_written_when_it_does_not_fit(words, dense, block_size):
    out = BlockMask.empty((64, 64), block_size=32, capacity=2, partial_capacity=1)
    BlockMask.from_ids([[0], [1]], (64, 64), block_size=32, out=out)
    before = {name: getattr(out, name).copy() for name in ARRAYS}
    with pytest.raises(ValueError, match=words):
        BlockMask.from_dense(dense, block_size=block_size, out=out)
    for name, array in before.items():
        np.testing.assert_array_equal(getattr(out, name), array)
    out.check()


def test_out_must_have_buffers():
    mask = BlockMask.causal((64, 64), block_size=32)
    with pytest.raises(ValueError, match=r"out must be a mask made by BlockMask\.empty"):
        BlockMask.from_dense(mask.to_dense(), block_size=32, out=mask)
    with pytest.raises(TypeError, match="out must be a BlockMask"):
        BlockMask.from_dense(mask.to_dense(), block_size=32, out=mask.to_dense())


def test_capacities_must_be_counts():
    with pytest.raises(ValueError, match="partial_capacity must be an int >= 0"):
        BlockMask.empty((64, 64), capacity=1, partial_capacity=-1)
