"""Block masks built on a device: the same lists as on the host, both ways, whatever the source and its memory."""

from __future__ import annotations

import itertools
import pickle

import ml_dtypes
import numpy as np
import pytest
from device_masks import BUILDERS, GRIDS, assert_same, dense_of, grid_of, no_allocations, on_device

from flashcupy import BlockMask, NotWarmedUpError
from flashcupy.blocks.order import longest_first


@pytest.fixture(params=BUILDERS)
def backend(request):
    with request.param.active():
        yield request.param


@pytest.mark.parametrize("name", GRIDS)
def test_from_blocks(backend, name):
    grid, shape, size = grid_of(name)
    blocks = np.random.default_rng(0).random((2, *grid)) < 0.4
    (own,) = on_device(backend, blocks)
    assert_same(
        BlockMask.from_blocks(own, shape, block_size=size), BlockMask.from_blocks(blocks, shape, block_size=size)
    )


@pytest.mark.parametrize("name", GRIDS)
def test_from_dense(backend, name):
    (heads, _, _), shape, size = grid_of(name)
    dense = dense_of(np.random.default_rng(1), (heads, *shape))
    (own,) = on_device(backend, dense)
    assert_same(BlockMask.from_dense(own, block_size=size), BlockMask.from_dense(dense, block_size=size))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("name", ["ragged", "words", "no columns"])
def test_from_topk(backend, name, dtype):
    grid, shape, size = grid_of(name)
    rng = np.random.default_rng(2)
    scores = rng.integers(-3, 4, grid).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)  # ties
    if "float" in dtype:
        scores[rng.random(grid) < 0.2] = np.nan
        scores[rng.random(grid) < 0.2] = -np.inf
        scores[rng.random(grid) < 0.05] = np.inf
        scores[rng.random(grid) < 0.1] = -0.0
    allowed, include = rng.random((grid[0], 1, grid[2])) < 0.8, rng.random(grid[1:]) < 0.15
    own = on_device(backend, scores, allowed, include)
    for k, flags in ((0, False), (1, False), (3, True), (5, False), (1, True), (1000, True)):
        options = {"block_size": size}
        given = dict(zip(("allowed", "include"), own[1:], strict=True)) if flags else {}
        expected = {"allowed": allowed, "include": include} if flags else {}
        mask = BlockMask.from_topk(own[0], k, shape, **options, **given)
        assert_same(mask, BlockMask.from_topk(scores, k, shape, **options, **expected))


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("name", ["ragged", "words", "no columns"])
def test_from_ids(backend, name, dtype):
    grid, shape, size = grid_of(name)
    rng = np.random.default_rng(3)
    ids = rng.random(grid).argsort(-1).astype(dtype)[..., :9]
    ids[rng.random(ids.shape) < 0.3] = -1
    counts = rng.integers(0, ids.shape[-1] + 1, ids.shape[:-1]).astype(dtype)
    own_ids, own_counts = on_device(backend, ids, counts)
    for given, expected in (({}, {}), ({"counts": own_counts}, {"counts": counts})):
        mask = BlockMask.from_ids(own_ids, shape, block_size=size, **given)
        assert_same(mask, BlockMask.from_ids(ids, shape, block_size=size, **expected))


def test_ids_that_name_no_block_are_left_out_and_told(backend):
    ids = np.array([[0, 5, 1, -1], [9, 3, 3, 0], [2, -7, 1, 2**40]])
    good = np.array([[0, 5, 1, -1], [-1, 3, -1, 0], [2, -1, 1, -1]])
    counts = np.array([3, 5, -2])
    own_ids, own_counts = on_device(backend, ids, counts)
    mask = BlockMask.from_ids(own_ids, (40, 90), block_size=16)
    assert mask.equals(BlockMask.from_ids(good, (40, 90), block_size=16))
    with pytest.raises(ValueError, match="3 ids or counts of the mask were out of range or repeated"):
        mask.check()
    mask = BlockMask.from_ids(own_ids, (40, 90), counts=own_counts, block_size=16)
    assert mask.equals(BlockMask.from_ids(good, (40, 90), counts=np.array([3, 4, 0]), block_size=16))
    with pytest.raises(ValueError, match="4 ids or counts"):
        mask.check()


@pytest.mark.parametrize("kind", ["strided", "reversed", "broadcast", "transposed"])
def test_sources_of_any_strides(backend, kind):
    grid, shape, size = grid_of("ragged")
    rng = np.random.default_rng(4)
    views = {
        "strided": lambda x: np.repeat(np.repeat(x, 2, -1), 3, -2)[..., ::3, ::2],
        "reversed": lambda x: x[..., ::-1, ::-1],
        "broadcast": lambda x: np.broadcast_to(x[..., :1, :], x.shape),
        "transposed": lambda x: np.ascontiguousarray(np.moveaxis(x, 0, -1)).transpose(2, 0, 1),
    }
    scores = views[kind](rng.random(grid).astype(np.float32))
    dense = views[kind](dense_of(rng, (grid[0], *shape)))
    own_scores, own_dense = on_device(backend, scores, dense)
    options = {"block_size": size}
    assert_same(BlockMask.from_topk(own_scores, 2, shape, **options), BlockMask.from_topk(scores, 2, shape, **options))
    assert_same(BlockMask.from_dense(own_dense, **options), BlockMask.from_dense(dense, **options))


@pytest.mark.parametrize("name", GRIDS)
def test_rows_with_many_blocks_come_first(backend, name):
    grid, shape, size = grid_of(name)
    rng = np.random.default_rng(5)
    blocks = rng.random((2, *grid)) < rng.choice([0.02, 0.1, 0.9], (2, *grid[:2], 1))
    (own,) = on_device(backend, blocks)
    mask = BlockMask.from_blocks(own, shape, block_size=size)
    for lists, last_first in ((mask.lists, True), (mask.transposed, False)):
        order = backend.get(lists.order)
        np.testing.assert_array_equal(order, longest_first(lists.to_host(), last_first=last_first))
        counts = np.diff(backend.get(lists.full_indptr))[order]
        assert sorted(order) == list(range(lists.grid.rows))
        assert all(later <= 1.25 * earlier for earlier, later in itertools.pairwise(counts) if earlier >= 4)


class TestFixedCapacity:
    def test_is_rewritten_in_place(self, backend, monkeypatch):
        grid, shape, size = grid_of("ragged")
        rng = np.random.default_rng(6)
        scores = rng.random((4, *grid)).astype(np.float32)
        dense = dense_of(rng, (grid[0], *shape))
        mask = BlockMask.empty(
            shape, capacity=200, partial_capacity=200, block_size=size, heads=grid[0], device="cuda:0"
        )
        assert mask.stats()["full"] == 0
        assert mask.capacity == mask.partial_capacity == 200
        *own, own_dense = on_device(backend, *scores, dense)
        BlockMask.from_topk(own[0], 2, shape, block_size=size, out=mask)
        BlockMask.from_dense(own_dense, block_size=size, out=mask)
        lists = mask.lists
        for n, expected in enumerate([2, 3, 1]):
            with no_allocations(backend, monkeypatch):
                assert BlockMask.from_topk(own[n], expected, shape, block_size=size, out=mask) is mask
            assert mask.lists is lists
            assert_same(mask, BlockMask.from_topk(scores[n], expected, shape, block_size=size))
        with no_allocations(backend, monkeypatch):
            BlockMask.from_dense(own_dense, block_size=size, out=mask)
        assert_same(mask, BlockMask.from_dense(dense, block_size=size))

    def test_what_does_not_fit_is_told(self, backend):
        blocks = np.ones((2, 3, 4), np.bool_)
        own, own_dense = on_device(backend, blocks, np.eye(48, 64, dtype=np.bool_))
        mask = BlockMask.empty((48, 64), capacity=20, block_size=16, heads=2, device="cuda:0")
        BlockMask.from_blocks(own, (48, 64), block_size=16, out=mask)
        for look in (mask.check, mask.stats, mask.to_dense, lambda: mask.mT):
            with pytest.raises(ValueError, match=r"24 FULL blocks, and room for 20 \(capacity\)"):
                look()
        mask = BlockMask.empty((48, 64), capacity=20, partial_capacity=2, block_size=16, device="cuda:0")
        BlockMask.from_dense(own_dense, block_size=16, out=mask)
        with pytest.raises(ValueError, match=r"3 PARTIAL blocks, and room for 2 \(partial_capacity\)"):
            mask.check()

    @pytest.mark.parametrize("partial", [False, True])
    def test_transposed_lists_may_come_later(self, backend, partial):
        grid, shape, size = grid_of("ragged")
        dense = dense_of(np.random.default_rng(7), (grid[0], *shape))
        blocks = dense[:, :: size[0], :: size[1]]
        own, own_blocks = on_device(backend, dense, blocks)
        capacities = {"capacity": 200, "partial_capacity": 200}
        mask = BlockMask.empty(shape, **capacities, block_size=size, heads=grid[0], transposed=False, device="cuda:0")
        assert mask.transposed.to_host().n_full == 0
        for _ in range(2):
            if partial:
                BlockMask.from_dense(own, block_size=size, out=mask)
                assert_same(mask, BlockMask.from_dense(dense, block_size=size))
            else:
                BlockMask.from_blocks(own_blocks, shape, block_size=size, out=mask)
                assert_same(mask, BlockMask.from_blocks(blocks, shape, block_size=size))
            assert mask.transposed is mask.transposed


class TestCapture:
    """Of a CUDA graph: played on the emulator, where capturing forbids what it forbids on a GPU."""

    @pytest.fixture
    def capturing(self, backend):
        if not backend.name.startswith("emu"):
            pytest.skip("test_gpu.py captures graphs on a GPU")
        yield backend.device
        backend.device.capturing = False

    def test_rewriting_is_captured(self, backend, capturing, monkeypatch):
        scores = np.random.default_rng(8).random((5, 7)).astype(np.float32)
        (own,) = on_device(backend, scores)
        mask = BlockMask.empty((80, 112), capacity=40, block_size=16, device="cuda:0")
        BlockMask.from_topk(own, 2, (80, 112), block_size=16, out=mask)
        capturing.capturing = True
        with no_allocations(backend, monkeypatch):
            BlockMask.from_topk(own, 2, (80, 112), block_size=16, out=mask)
        capturing.capturing = False
        assert_same(mask, BlockMask.from_topk(scores, 2, (80, 112), block_size=16))

    def test_what_is_not_ready_raises(self, backend, capturing):
        own, ids = on_device(backend, np.ones((5, 7), np.bool_), np.zeros((5, 1), np.int32))
        mask = BlockMask.empty((80, 112), capacity=40, block_size=16, transposed=False, device="cuda:0")
        BlockMask.from_blocks(own, (80, 112), block_size=16, out=mask)
        assert mask.transposed.to_host().n_full == 35
        uploaded = BlockMask.causal((80, 112), block_size=16, device="cuda:0")
        capturing.capturing = True
        # Even those that are there: the next rewrite makes others.
        with pytest.raises(NotWarmedUpError, match="keeps no transposed lists"):
            _ = mask.transposed
        with pytest.raises(NotWarmedUpError, match="would have to be copied"):
            _ = uploaded.transposed
        with pytest.raises(NotWarmedUpError, match="would have to be copied"):
            BlockMask.causal((80, 112), block_size=16, device="cuda:0")
        capturing.capturing = False
        BlockMask.from_ids(ids, (80, 112), block_size=16, out=mask)
        assert mask.stats()["full"] == 5

    def test_lists_of_the_host_are_refused(self, backend, capturing):
        mask = BlockMask.empty((32, 48), capacity=9, block_size=16, device="cuda:0")
        capturing.capturing = True
        with pytest.raises(NotWarmedUpError, match="cannot be copied to the device while a graph"):
            BlockMask.from_blocks(np.ones((2, 3), np.bool_), (32, 48), block_size=16, out=mask)
        with pytest.raises(NotWarmedUpError, match="make it before the capture"):
            BlockMask.empty((32, 48), capacity=9, block_size=16, device="cuda:0")
        capturing.capturing = False
        assert mask.stats()["full"] == 0

    def test_replays_are_seen_by_later_calls(self, backend, capturing):
        """Rewrites of a graph, replayed where Python sees nothing of it."""
        rng = np.random.default_rng(9)
        blocks, ids = on_device(backend, rng.random((5, 7)) < 0.5, np.full((5, 2), 99, np.int32))
        for transposed in (False, True):
            mask = BlockMask.empty((80, 112), capacity=40, block_size=16, transposed=transposed, device="cuda:0")
            BlockMask.from_ids(ids, (80, 112), block_size=16, out=mask)
            BlockMask.from_blocks(blocks, (80, 112), block_size=16, out=mask)
            mask.check()
            assert mask.transposed.to_host().n_full > 0
            buffers = mask._buffers
            before = buffers._source, buffers._columns_written
            capturing.capturing = True
            BlockMask.from_ids(ids, (80, 112), block_size=16, out=mask)
            capturing.capturing = False
            buffers._source, buffers._columns_written = before  # as if it had been a replay
            assert mask.transposed.to_host().n_full == 0
            with pytest.raises(ValueError, match="10 ids or counts"):
                mask.check()


def test_algebra_and_views_stay_where_they_are(backend):
    host = BlockMask.sliding_window((200, 300), 40, 20, block_size=32, heads=2)
    random = BlockMask.random((200, 300), 3, rng=0, block_size=32, heads=2)
    mask, other = host.to_device("cuda:0"), random.to_device("cuda")
    assert BlockMask.sliding_window((200, 300), 40, 20, block_size=32, heads=2, device="cuda:0").equals(host)
    assert mask.to_device("cuda:0") is mask
    assert mask.to_device("cpu").equals(host)
    pairs = [
        (mask & other, host & random),
        (mask | other, host | random),
        (~mask, ~host),
        (mask.mT, host.mT),
        (mask[0, 1], host[0, 1]),
        (mask.rows(10, 150), host.rows(10, 150)),
        (mask.with_block_size(64), host.with_block_size(64)),
    ]
    for made, expected in pairs:
        assert_same(made, expected)
    assert str(mask) == str(host)
    assert mask.stats() == host.stats()
    assert repr(mask) == "BlockMask(shape=(1, 2, 200, 300), block_size=(32, 32), device='cuda:0')"
    assert pickle.loads(pickle.dumps(mask)).device == "cpu"
    np.testing.assert_array_equal(mask.to_dense(), host.to_dense())
    np.testing.assert_array_equal(mask.unpack([0]), host.unpack([0]))
    predicate = BlockMask.from_predicate(lambda b, h, i, j: i > j, (200, 300), heads=2, block_size=32, within=mask)
    assert predicate.device == "cpu"
    assert (predicate & host).equals(predicate)


@pytest.mark.parametrize("transposed", [True, False])
def test_lists_of_the_host_overwrite_a_mask_of_the_device(backend, transposed):
    shape, size = (70, 90), (16, 32)
    dense = dense_of(np.random.default_rng(7), (2, 3, *shape))
    room = {"capacity": 90, "partial_capacity": 90, "batch": 2, "heads": 3, "transposed": transposed}
    mask = BlockMask.empty(shape, block_size=size, device="cuda:0", **room)
    (there,) = on_device(backend, ~dense)
    address = mask.full_indices
    for source in (
        dense,
        there,
        ~dense,
        np.zeros_like(dense),
        dense,
    ):  # after each other, and after arrays of the device
        assert BlockMask.from_dense(source, block_size=size, out=mask) is mask
        wanted = ~dense if source is there else source
        assert_same(mask, BlockMask.from_dense(wanted, block_size=size))
        assert mask.full_indices is address


def test_malformed_sources(backend):
    flags, ids, scores, twenty = on_device(
        backend, np.ones((2, 3), np.bool_), np.zeros((2, 4), np.int32), np.zeros((2, 3)), np.zeros((20, 20), np.bool_)
    )
    shape, host = (32, 48), BlockMask.empty((32, 48), capacity=9, block_size=16)
    own = BlockMask.empty(shape, capacity=9, block_size=16, device="cuda:0")
    small = BlockMask.empty(shape, capacity=5, block_size=16, device="cuda:0")
    calls = [
        (TypeError, "blocks must be bool", lambda: BlockMask.from_blocks(ids, shape, block_size=16)),
        (ValueError, r"blocks must have shape \(2, 1\)", lambda: BlockMask.from_blocks(flags, (32, 16), block_size=16)),
        (TypeError, "ids must be int32 or int64", lambda: BlockMask.from_ids(scores, shape, block_size=16)),
        (ValueError, "ids must have shape", lambda: BlockMask.from_ids(ids, (16, 48), block_size=16)),
        (TypeError, "scores must be one of float16", lambda: BlockMask.from_topk(flags, 1, shape, block_size=16)),
        (ValueError, "k must be an int >= 0", lambda: BlockMask.from_topk(scores, -1, shape, block_size=16)),
        (TypeError, "mask must be bool", lambda: BlockMask.from_dense(scores, block_size=16)),
        (ValueError, "block_size must be 16", lambda: BlockMask.from_dense(twenty, block_size=20)),
        (
            ValueError,
            "allowed must broadcast to the shape",
            lambda: BlockMask.from_topk(scores, 1, shape, block_size=16, allowed=twenty),
        ),
        (
            ValueError,
            "counts is in host memory",
            lambda: BlockMask.from_ids(ids, shape, block_size=16, counts=np.zeros(2, np.int32)),
        ),
        (
            ValueError,
            "out must be a mask made by BlockMask.empty on the device of the arrays, got a mask on the host",
            lambda: BlockMask.from_blocks(flags, shape, block_size=16, out=host),
        ),
        (
            ValueError,
            "out must be a mask made by .*, got an immutable one",
            lambda: BlockMask.from_blocks(
                flags, shape, block_size=16, out=BlockMask.from_blocks(flags, shape, block_size=16)
            ),
        ),
        (TypeError, "out must be a BlockMask", lambda: BlockMask.from_blocks(flags, shape, block_size=16, out=flags)),
        (ValueError, "out must be a mask of shape", lambda: BlockMask.from_dense(twenty, block_size=16, out=own)),
        (
            ValueError,
            r"out holds \d FULL blocks \(capacity\), got 6",
            lambda: BlockMask.from_blocks(np.ones((2, 3), np.bool_), shape, block_size=16, out=small),
        ),
        (ValueError, "device is 'cuda:7', expected a CUDA", lambda: BlockMask.causal(shape, device="cuda:7")),
        (ValueError, "'cuda:0', got 'cuda0'", lambda: own.to_device("cuda0")),
        (ValueError, "& needs masks on one device", lambda: own & host),
    ]
    for error, words, call in calls:
        with pytest.raises(error, match=words):
            call()
    assert own.stats()["full"] == 0
