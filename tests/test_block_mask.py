"""BlockMask as an object: its lists, views, pictures and pickles."""

import dataclasses
import pickle
import threading
import tracemalloc

import numpy as np
import pytest
from block_mask_cases import ARRAYS, BLOCK_SIZES, SHAPES, assert_lists, scattered

from flashcupy.block_mask import BlockMask
from flashcupy.blocks.lists import BlockLists

LONG = (131072, 131072)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def mask(rng):
    return BlockMask.from_dense(scattered(rng, (100, 130), 32, (2, 3)), block_size=32)


def test_sizes(mask):
    assert mask.shape == (2, 3, 100, 130)
    assert mask.block_size == (32, 32)
    assert (mask.num_block_rows, mask.num_block_cols) == (4, 5)
    assert mask.device == "cpu"
    assert mask.capacity is mask.partial_capacity is None


def test_a_band_stores_a_handful_of_patterns():
    mask = BlockMask.sliding_window((4096, 4096), 300, 0)
    assert len(mask.bits) <= 4
    assert len(mask.bits_id) == len(mask.partial_indices) > 100


def test_unpack(mask):
    elements = mask.unpack(mask.bits_id)
    assert elements.shape == (len(mask.partial_indices), 32, 32)
    assert elements.dtype == bool
    assert not elements.all(axis=(1, 2)).any()
    assert mask.unpack([]).shape == (0, 32, 32)
    with pytest.raises(IndexError):
        mask.unpack([len(mask.bits)])


@pytest.mark.parametrize("name", ARRAYS)
def test_lists_are_immutable(mask, name):
    array = getattr(mask, name)
    with pytest.raises(ValueError, match="read-only"):
        array[...] = 0
    with pytest.raises(AttributeError):
        setattr(mask, name, array)
    assert not getattr(mask.transposed, name).flags.writeable


def test_lists_do_not_alias_the_input():
    bits = np.tri(16, dtype=bool)[None]
    indptr, indices = np.array([0, 1]), np.array([0], np.int32)
    mask = BlockMask.from_csr(indptr, indices, (16, 16), block_size=16, partial=[True], bits=bits)
    bits[:], indptr[:], indices[:] = True, 7, 7
    mask.check()
    np.testing.assert_array_equal(mask.to_dense()[0, 0], np.tri(16, dtype=bool))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_transposed(rng, shape, block_size):
    dense = scattered(rng, shape, block_size, (2, 2))
    mask = BlockMask.from_dense(dense, block_size=block_size)
    assert_lists(mask.mT, dense.swapaxes(2, 3))
    assert mask.mT.mT.equals(mask)
    assert mask.transposed is mask.transposed
    assert mask.transposed.shape == mask.mT.shape
    for name in ARRAYS:
        assert getattr(mask.mT, name) is getattr(mask.transposed, name)


def test_threads_build_the_transposed_lists_once():
    mask = BlockMask.causal((4096, 4096))
    start, found = threading.Barrier(4), []

    def look():
        start.wait()
        found.append(mask.transposed)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(lists) for lists in found}) == 1


@pytest.mark.parametrize(
    "index",
    [
        (0, 0),
        (1, -1),
        (slice(None), 1),
        (slice(None, None, -1), slice(1, 3)),
        (0, slice(0, 0)),
        (np.int64(1), slice(None)),
    ],
)
def test_indexing_picks_batch_and_heads(mask, index):
    wanted = mask.to_dense()[
        tuple(slice(i, None if i == -1 else i + 1) if not isinstance(i, slice) else i for i in index)
    ]
    assert_lists(mask[index], wanted)


@pytest.mark.parametrize("index", [(2, 0), (0, 3), (0, -4)])
def test_indexing_out_of_range(mask, index):
    with pytest.raises(IndexError):
        mask[index]


@pytest.mark.parametrize("index", [0, slice(None), (0,), (0, 0, 0), (0, 1.0), (0, [1]), (0, None)])
def test_indexing_otherwise_is_a_type_error(mask, index):
    with pytest.raises(TypeError, match="a BlockMask is indexed"):
        mask[index]


def test_density_and_stats(mask):
    dense = mask.to_dense()
    padded = np.pad(dense, ((0, 0), (0, 0), (0, 28), (0, 30))).reshape(2, 3, 4, 32, 5, 32)
    listed = padded.any(axis=(3, 5))
    stats = mask.stats()
    assert mask.density == stats["density"] == listed.mean()
    assert stats["blocks"] == 120
    assert stats["full"] + stats["partial"] == listed.sum()
    assert stats["full"] == len(mask.full_indices)
    assert stats["empty"] == 120 - listed.sum()
    assert stats["element_density"] == dense.mean()
    assert stats["patterns"] == len(mask.bits)
    assert stats["bytes"] == sum(getattr(mask, name).nbytes for name in ARRAYS)
    for name, axis in (("row", -1), ("column", -2)):
        blocks = listed.sum(axis=axis)
        assert stats[f"longest_{name}"] == blocks.max()
        assert stats[f"{name}_imbalance"] == pytest.approx(blocks.max() / blocks.mean())
    elements = listed.repeat(32, axis=2).repeat(32, axis=3)[:, :, : dense.shape[2], : dense.shape[3]]
    assert stats["visited"] == elements.sum() > dense.sum()


def test_stats_of_nothing():
    mask = BlockMask.causal((0, 0))
    assert mask.density == 0.0
    assert mask.stats()["element_density"] == 0.0
    for nothing in (mask, BlockMask.from_blocks(np.zeros((2, 3), bool), (128, 192)), BlockMask.causal((64, 0))):
        stats = nothing.stats()
        assert stats["row_imbalance"] == stats["column_imbalance"] == 1.0
        assert stats["visited"] == stats["longest_row"] == stats["longest_column"] == 0


def test_equals():
    mask = BlockMask.causal((100, 100))
    assert mask.equals(BlockMask.from_dense(np.tri(100, dtype=bool)))
    assert not mask.equals(BlockMask.causal((100, 101)))
    assert not mask.equals(BlockMask.causal((100, 100), heads=2))
    assert not mask.equals(BlockMask.causal((100, 100), block_size=32))
    assert not mask.equals(~mask)
    with pytest.raises(TypeError, match="other must be a BlockMask"):
        mask.equals(mask.to_dense())


def test_equality_and_hash_go_by_identity():
    a, b = BlockMask.causal((64, 64)), BlockMask.causal((64, 64))
    assert a == a
    assert a != b
    assert len({a, b}) == 2


def test_does_not_turn_into_an_array(mask):
    with pytest.raises(TypeError, match="to_dense"):
        np.asarray(mask)
    for left, right in ((np.ones(3, bool), mask), (mask, np.ones(3, bool))):
        with pytest.raises(TypeError):
            left & right
        with pytest.raises(TypeError):
            left | right


def test_is_made_by_constructors_only():
    with pytest.raises(TypeError, match="BlockMask is made by its constructors"):
        BlockMask(np.ones((3, 3), bool))


def test_devices(mask):
    assert mask.to_device("cpu") is mask
    with pytest.raises(ValueError, match="device must be"):
        mask.to_device("gpu")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(mask, protocol):
    again = pickle.loads(pickle.dumps(mask, protocol))
    assert again.equals(mask)
    assert not again.bits.flags.writeable
    assert again.mT.equals(mask.mT)
    again.check()


def test_pickle_of_an_unknown_version(mask):
    function, (state,) = mask.__reduce__()
    with pytest.raises(ValueError, match="version 1, got 2"):
        function({**state, "version": 2})


def broken(mask, **changes):
    lists = {name: getattr(mask, name).copy() for name in ARRAYS}
    for name, change in changes.items():
        lists[name] = change(lists[name])
    return BlockMask(dataclasses.replace(mask.mT.transposed, **lists))


def at(index, value):
    def change(array):
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ("full_indptr must be int64", {"full_indptr": lambda a: a[1:]}),
        ("partial_indptr must be int64", {"partial_indptr": lambda a: a.astype(np.int32)}),
        ("full_indices must be int32", {"full_indices": lambda a: a.astype(np.int64)}),
        ("full_indptr must rise from 0", {"full_indptr": at(1, 5)}),
        ("full_indptr ends at 3, past the 2", {"full_indices": lambda a: a[:2]}),
        (r"bits must be uint32 \(n, 16, 1\)", {"bits": lambda a: a[:, :8]}),
        ("bits_id must be int32", {"bits_id": lambda a: a[1:]}),
        (r"full_indices must lie in \[0, 3\)", {"full_indices": at(0, 3)}),
        (r"partial_indices must lie in \[0, 3\)", {"partial_indices": at(0, -1)}),
        ("full_indices must be ascending", {"full_indices": at([1, 2], [1, 0])}),
        ("listed both FULL and PARTIAL", {"partial_indices": at(1, 0)}),
        (r"bits_id must lie in \[0, 1\)", {"bits_id": at(0, 4)}),
        ("a pattern that no block uses", {"bits_id": at(slice(None), 1), "bits": lambda a: a.repeat(2, axis=0)}),
        ("stores a pattern twice", {"bits_id": at(0, 1), "bits": lambda a: a.repeat(2, axis=0)}),
        ("a pattern that sees nothing", {"bits": at(0, 0)}),
        ("0 outside the shape", {"bits": at((0, 0), 0x10001)}),
        ("must be FULL", {"bits": at(0, 0xFFFF)}),
    ],
)
def test_check_names_what_is_broken(words, changes):
    mask = BlockMask.causal((48, 48), block_size=16)
    mask.check()
    with pytest.raises(ValueError, match=words):
        broken(mask, **changes).check()


def test_check_compares_the_transposed_lists():
    wrong = BlockMask.causal((48, 48), block_size=16)
    wrong._transposed = BlockMask.sliding_window((48, 48), 1, 0, block_size=16).transposed
    with pytest.raises(ValueError, match="transposed lists"):
        wrong.check()


def test_repr_is_one_short_line():
    assert repr(BlockMask.causal((100, 200), block_size=(16, 32))) == (
        "BlockMask(shape=(1, 1, 100, 200), block_size=(16, 32), device='cpu')"
    )


def test_str_draws_one_glyph_per_block():
    mask = BlockMask.from_csr(
        [0, 1, 3], [0, 0, 1], (20, 40), block_size=16, partial=[False, True, False], bits=np.tri(16, dtype=bool)[None]
    )
    assert str(mask).splitlines() == ["BlockMask 1 x 1 x 20 x 40, blocks 16 x 16, density 0.500", "█··", "▒█·"]


def test_str_is_bounded_and_reduces():
    lines = str(BlockMask.causal(LONG) & ~BlockMask.global_tokens(LONG, 64 * 64)).splitlines()
    assert len(lines) == 33
    assert {len(line) for line in lines[1:]} == {64}
    assert lines[-1].startswith("··█")
    assert lines[1] == "·" * 64
    assert lines[-1].endswith("█▒░")  # cells that hold FULL blocks, but not only


def test_str_of_several_heads_and_of_none(mask):
    assert "batch 0, head 0" in str(mask)
    assert str(mask).splitlines()[1:] == str(mask[0, 0]).splitlines()[1:]
    assert str(BlockMask.causal((0, 64))).count("\n") == 0
    str(BlockMask.causal((64, 64), heads=0))


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib", reason="plot needs matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    yield pyplot
    pyplot.close("all")


def test_plot_draws_one_head(pyplot):
    mask = BlockMask.from_blocks(np.array([[[True, False]], [[False, False]]]), (20, 64), block_size=32)
    ax = mask.plot()
    np.testing.assert_array_equal(ax.images[0].get_array(), [[1.0, 0.0]])
    assert ax.get_xlim() == (0, 64)
    assert ax.get_ylim() == (20, 0)
    other = pyplot.figure().subplots()
    assert mask.plot(other, head=1) is other
    np.testing.assert_array_equal(other.images[0].get_array(), [[0.0, 0.0]])
    with pytest.raises(IndexError):
        mask.plot(head=2)
    BlockMask.causal((0, 5)).plot(ax)


def test_plot_says_how_dense_the_drawn_head_is(pyplot):
    mask = BlockMask.from_blocks(np.array([[[True, False]], [[False, False]]]), (20, 64), block_size=32)
    assert [mask.plot(head=head).get_title() for head in (0, 1)] == [
        "blocks 32 x 32, density 0.5",
        "blocks 32 x 32, density 0",
    ]


def test_plot_stretches_what_would_be_a_line(pyplot):
    assert BlockMask.causal((64, 512)).plot().get_aspect() == 1.0
    assert BlockMask.causal((64, 576)).plot().get_aspect() == "auto"


def test_plot_draws_blocks_where_they_are(pyplot):
    # 1500 blocks in cells of two: the last column of blocks must not be drawn beside its place.
    mask = BlockMask.from_blocks(np.arange(1500)[None] == 1499, (16, 1500 * 16), block_size=16)
    image = mask.plot().images[0]
    (column,) = image.get_array()[0].nonzero()[0]
    left, right, *_ = image.get_extent()
    width = (right - left) / image.get_array().shape[1]
    assert left + column * width <= 1499 * 16 < left + (column + 1) * width
    assert image.get_array()[0, column] == 0.5  # one of its two blocks


def test_plot_reduces_large_masks(pyplot):
    mask = BlockMask.sliding_window(LONG, 4096, 0)
    pyplot.figure()
    tracemalloc.start()
    try:
        picture = mask.plot().images[0].get_array()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert max(picture.shape) <= 1024
    assert peak < 64 * 2**20


def test_lists_of_a_wrong_kind_are_not_comparable_by_accident(mask):
    assert isinstance(mask.transposed, BlockLists)
    assert mask.transposed != BlockMask.from_dense(mask.to_dense(), block_size=32).transposed
