"""Pattern constructors against the formulas in their docstrings, element by element."""

import tracemalloc

import numpy as np
import pytest
from block_mask_cases import BLOCK_SIZES, assert_sees, expand, grid
from hypothesis import given, settings
from hypothesis import strategies as st

from flashcupy.block_mask import BlockMask

SHAPES = [(200, 200), (100, 300), (300, 100), (129, 127), (1, 300), (300, 1), (0, 64), (64, 0)]
ALIGNMENTS = ["bottom-right", "top-left"]
LONG = (131072, 131072)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def diagonal(shape, align):
    """J - i - off."""
    i, j = np.indices(shape)
    return (j - i - (shape[1] - shape[0] if align == "bottom-right" else 0))[None, None]


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("align", ALIGNMENTS)
def test_causal(shape, align, block_size):
    mask = BlockMask.causal(shape, align=align, block_size=block_size)
    assert_sees(mask, diagonal(shape, align) <= 0)


@given(
    shape=st.tuples(st.integers(0, 300), st.integers(0, 300)),
    left=st.none() | st.integers(0, 400),
    right=st.none() | st.integers(0, 400),
    align=st.sampled_from(ALIGNMENTS),
    block_size=st.sampled_from(BLOCK_SIZES),
)
@settings(max_examples=100, deadline=None)
def test_sliding_window(shape, left, right, align, block_size):
    mask = BlockMask.sliding_window(shape, left, right, align=align, block_size=block_size)
    d = diagonal(shape, align)
    assert_sees(mask, (d >= (-np.inf if left is None else -left)) & (d <= (np.inf if right is None else right)))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [0, 1, 64, 100, 1000])
def test_global_tokens_and_prefix_lm(shape, n, block_size):
    i, j = np.indices(shape)
    assert_sees(BlockMask.global_tokens(shape, n, block_size=block_size), ((i < n) | (j < n))[None, None])
    prefix = (j < n)[None, None] | (diagonal(shape, "bottom-right") <= 0)
    assert_sees(BlockMask.prefix_lm(shape, n, block_size=block_size), prefix)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("kind", ["packed", "interleaved", "any", "one"])
def test_document(rng, kind, block_size):
    make = {
        "packed": lambda n: np.sort(rng.integers(-2, 4, (2, n)), axis=1),
        "interleaved": lambda n: np.tile(np.arange(n) % 3, (2, 1)),
        "any": lambda n: rng.integers(0, 40, (2, n)) * 10**12,
        "one": lambda n: np.full((2, n), 7),
    }[kind]
    q_ids, k_ids = make(257), make(130)
    mask = BlockMask.document(q_ids, k_ids, block_size=block_size)
    assert_sees(mask, (q_ids[:, None, :, None] == k_ids[:, None, None, :]))


def test_document_defaults(rng):
    ids = rng.integers(0, 3, 100)
    dense = ids[:, None] == ids
    assert_sees(BlockMask.document(ids, block_size=16), dense[None, None])
    assert_sees(BlockMask.document(ids.tolist(), block_size=16, heads=2), np.stack([dense, dense])[None])
    assert BlockMask.document(np.zeros((3, 0), int)).shape == (3, 1, 0, 0)


def test_document_joins_in_pieces(rng, monkeypatch):
    q_ids, k_ids = rng.integers(0, 5, (2, 200)), rng.integers(0, 5, (2, 90))
    wanted = BlockMask.document(q_ids, k_ids, block_size=16)
    monkeypatch.setattr("flashcupy.blocks.bits.CHUNK_ELEMENTS", 7)
    assert BlockMask.document(q_ids, k_ids, block_size=16).equals(wanted)


@pytest.mark.parametrize("per_row", [0, 1, 5, 13])
def test_random_draws_distinct_blocks_for_each_row(per_row):
    mask = BlockMask.random((300, 200), per_row, rng=3, block_size=16, batch=2, heads=3)
    mask.check()  # ascending and unique in a row
    assert mask.partial_indices.size == 0
    assert (np.diff(mask.full_indptr) == per_row).all()
    rng = np.random.default_rng(3)
    assert mask.equals(BlockMask.random((300, 200), per_row, rng=rng, block_size=16, batch=2, heads=3))
    if 0 < per_row < 13:
        assert not mask[0, 0].equals(mask[0, 1])
        assert not mask[0, 0].equals(mask[1, 0])


def test_random_is_uniform():
    columns = BlockMask.random((16 * 4000, 16 * 10), 3, rng=0, block_size=16).full_indices
    share = np.bincount(columns, minlength=10) / 4000
    assert abs(share - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 4000)  # five standard deviations


@pytest.mark.parametrize("shape", [(512, 512), (300, 500), (500, 300)])
@pytest.mark.parametrize(("window", "n_global", "n_random"), [(1, 0, 0), (3, 2, 3), (5, 1, 2), (3, 40, 1), (3, 1, 40)])
@pytest.mark.parametrize("block_size", [16, (32, 16), (16, 64)])
def test_bigbird(shape, window, n_global, n_random, block_size):
    mask = BlockMask.bigbird(
        shape, window=window, n_global=n_global, n_random=n_random, rng=0, block_size=block_size, batch=2, heads=2
    )
    (nq, nk), (bq, bk) = grid(shape, block_size), mask.block_size
    i, j = np.indices((nq, nk))
    centre = (i * bq + shape[1] - shape[0]) // bk
    fixed = (i < n_global) | (j < n_global) | (abs(j - centre) <= window // 2)
    blocks = np.zeros((4 * nq, nk), bool)
    blocks[np.repeat(np.arange(4 * nq), np.diff(mask.full_indptr)), mask.full_indices] = True
    assert mask.partial_indices.size == 0
    for head in blocks.reshape(4, nq, nk):
        assert (head | ~fixed).all()
        np.testing.assert_array_equal((head & ~fixed).sum(axis=1), np.minimum(n_random, (~fixed).sum(axis=1)))
    assert_sees(mask, expand(blocks.reshape(2, 2, nq, nk), shape, mask.block_size))


def test_batch_and_heads_repeat_the_pattern():
    for make in (
        lambda **kw: BlockMask.causal((100, 90), block_size=32, **kw),
        lambda **kw: BlockMask.global_tokens((100, 90), 20, block_size=32, **kw),
        lambda **kw: BlockMask.prefix_lm((100, 90), 20, block_size=32, **kw),
    ):
        assert_sees(make(batch=2, heads=3), np.broadcast_to(make().to_dense(), (2, 3, 100, 90)))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("left must be an int >= 0, or None for no limit, got -1", lambda: BlockMask.sliding_window((9, 9), -1, 0)),
        ("right must be an int >= 0, or None for no limit, got -1", lambda: BlockMask.sliding_window((9, 9), 0, -1)),
        ("align must be 'bottom-right' or 'top-left'", lambda: BlockMask.causal((9, 9), align="top")),
        ("n must be an int >= 0", lambda: BlockMask.global_tokens((9, 9), -1)),
        ("n must be an int >= 0", lambda: BlockMask.prefix_lm((9, 9), -1)),
        ("per_row must be at most the 1", lambda: BlockMask.random((9, 9), 2, rng=0)),
        ("window must be odd", lambda: BlockMask.bigbird((9, 9), window=2, n_global=0, n_random=0, rng=0)),
        ("window must be an int >= 1", lambda: BlockMask.bigbird((9, 9), window=-1, n_global=0, n_random=0, rng=0)),
        ("n_random must be an int >= 0", lambda: BlockMask.bigbird((9, 9), window=1, n_global=0, n_random=-1, rng=0)),
        ("k_ids must have the batch size 2", lambda: BlockMask.document([[0], [1]], [0])),
        ("q_ids must be", lambda: BlockMask.document([[[0]]])),
        ("batch must be an int >= 0", lambda: BlockMask.causal((9, 9), batch=-1)),
    ],
)
def test_malformed_arguments_are_named(words, call):
    with pytest.raises(ValueError, match=words):
        call()


def test_ids_must_be_integers():
    with pytest.raises(TypeError, match="q_ids must be an integer"):
        BlockMask.document([0.5])


@pytest.mark.parametrize(
    ("megabytes", "make"),
    [
        (8, lambda: BlockMask.sliding_window(LONG, 4096, 0)),
        (4, lambda: BlockMask.bigbird(LONG, window=3, n_global=2, n_random=3, rng=0)),
        (4, lambda: BlockMask.global_tokens(LONG, 100)),
        (24, lambda: BlockMask.document(np.arange(LONG[0]) // 1000)),
        (8, lambda: BlockMask.sliding_window(LONG, 1024, 1024) | BlockMask.global_tokens(LONG, 64)),
        (16, lambda: BlockMask.sliding_window(LONG, 1024, 0).with_block_size(128).rows(1000, 100_000).mT),
    ],
)
def test_memory_follows_the_blocks(megabytes, make):
    tracemalloc.start()
    try:
        mask = make()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < megabytes * 2**20
    assert mask.stats()["bytes"] < 2 * 2**20
