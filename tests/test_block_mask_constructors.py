"""BlockMask from arrays, tables, scores, predicates and sparse matrices."""

import numpy as np
import pytest
import scipy.sparse
from block_mask_cases import BLOCK_SIZES, SHAPES, assert_lists, assert_sees, expand, grid, pair, scattered

from flashcupy.block_mask import BlockMask

LEADING = [(), (2,), (2, 3)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def four_dims(dense):
    return dense.reshape((1, 1, *dense.shape)[-4:])


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_from_dense_makes_the_documented_lists(rng, shape, block_size):
    dense = scattered(rng, shape, block_size, (2, 1))
    mask = BlockMask.from_dense(dense, block_size=block_size)
    assert_lists(mask, dense)
    assert_sees(mask, dense)


@pytest.mark.parametrize("leading", LEADING)
def test_from_dense_reads_leading_dims_as_batch_and_heads(rng, leading):
    dense = scattered(rng, (70, 90), 32, leading)
    assert_sees(BlockMask.from_dense(dense, block_size=32), four_dims(dense))


def test_from_dense_takes_strided_and_nested_input(rng):
    dense = scattered(rng, (70, 90), 32)
    assert_sees(BlockMask.from_dense(dense[0, 0].T[::-1], block_size=16), dense[:, :].swapaxes(2, 3)[:, :, ::-1])
    assert_sees(BlockMask.from_dense([[True, False]], block_size=16), np.array([[[[True, False]]]]))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("shape", SHAPES)
def test_from_blocks(rng, shape, leading, block_size):
    blocks = rng.random((*leading, *grid(shape, block_size))) < 0.5
    mask = BlockMask.from_blocks(blocks, shape, block_size=block_size)
    assert mask.partial_indices.size == 0
    assert_sees(mask, four_dims(expand(blocks, shape, block_size)))


@pytest.mark.parametrize("as_bool", [True, False])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_from_csr_reads_its_own_lists(rng, block_size, as_bool):
    shape = (257, 130)
    dense = scattered(rng, shape, block_size, (2, 2))
    mask = BlockMask.from_dense(dense, block_size=block_size)
    rows = len(mask.full_indptr) - 1
    row = [np.repeat(np.arange(rows), np.diff(p)) for p in (mask.full_indptr, mask.partial_indptr)]
    col = np.concatenate([mask.full_indices, mask.partial_indices])
    order = np.lexsort([col, np.concatenate(row)])
    partial = (np.arange(len(col)) >= len(mask.full_indices))[order]
    again = BlockMask.from_csr(
        mask.full_indptr + mask.partial_indptr,
        col[order],
        shape,
        block_size=block_size,
        batch=2,
        heads=2,
        partial=partial,
        bits=mask.unpack(mask.bits_id) if as_bool else mask.bits[mask.bits_id],
    )
    assert again.equals(mask)


def test_from_csr_normalises():
    bits = np.zeros((4, 16, 1), np.uint32)
    bits[0] = 0xFFFFFFFF  # full, whatever lies past column 16
    bits[2:] = 0xFF  # the same pattern twice, but full in the ragged column
    mask = BlockMask.from_csr([0, 3, 4], [0, 1, 2, 0], (32, 40), block_size=16, partial=np.ones(4, bool), bits=bits)
    assert mask.full_indices.tolist() == [0, 2]
    assert mask.full_indptr.tolist() == [0, 2, 2]
    assert mask.partial_indptr.tolist() == [0, 0, 1]
    assert mask.bits.shape == (1, 16, 1)
    mask.check()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("leading", LEADING)
def test_from_ids_takes_any_order_and_padding(rng, leading, block_size):
    shape = (257, 300)
    blocks = rng.random((*leading, *grid(shape, block_size))) < 0.4
    nk = blocks.shape[-1]
    ids = np.where(blocks, np.arange(nk), rng.integers(-9, 0, blocks.shape))
    ids = rng.permuted(ids, axis=-1)
    mask = BlockMask.from_ids(ids, shape, block_size=block_size)
    assert mask.equals(BlockMask.from_blocks(blocks, shape, block_size=block_size))


def test_from_ids_does_not_look_behind_counts():
    ids = np.array([[2, 0, 999], [1, 1, 1]])
    mask = BlockMask.from_ids(ids, (128, 192), counts=[2, 1])
    assert mask.full_indptr.tolist() == [0, 2, 3]
    assert mask.full_indices.tolist() == [0, 2, 1]


def naive_topk(scores, k, allowed, include):
    chosen = np.zeros(scores.shape, bool)
    for row in np.ndindex(scores.shape[:-1]):
        cost = {j: (np.inf if np.isnan(s) else -s) for j, s in enumerate(scores[row])}
        forced = [j for j in cost if allowed[row][j] and include[row][j]]
        free = [j for j in cost if allowed[row][j] and not include[row][j] and cost[j] < np.inf]
        ranked = sorted(forced, key=lambda j: (cost[j], j)) + sorted(free, key=lambda j: (cost[j], j))
        chosen[row][ranked[:k]] = True
    return chosen


@pytest.mark.parametrize("k", [0, 1, 3, 8, 50])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_from_topk(rng, k, dtype):
    shape, size = (200, 320), (2, 3, 13, 20)
    scores = rng.integers(-3, 3, size).astype(dtype)
    if scores.dtype.kind == "f":
        scores[rng.random(size) < 0.2] = np.nan
        scores[rng.random(size) < 0.2] = -np.inf
        scores[rng.random(size) < 0.1] = np.inf
    allowed, include = rng.random((13, 20)) < 0.7, rng.random((3, 1, 20)) < 0.2
    everything, nothing = np.ones(size, bool), np.zeros(size, bool)
    plain = BlockMask.from_topk(scores, k, shape, block_size=16)
    np.testing.assert_array_equal(
        plain.to_dense(), expand(naive_topk(scores, k, everything, nothing), shape, 16), strict=True
    )
    chosen = BlockMask.from_topk(scores, k, shape, block_size=16, allowed=allowed, include=include)
    wanted = naive_topk(scores, k, *(np.broadcast_to(a, size) for a in (allowed, include)))
    assert_sees(chosen, expand(wanted, shape, 16))


def test_from_topk_reads_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 scores need ml_dtypes")
    scores = np.array([[1, 3, 2]], ml_dtypes.bfloat16)
    assert BlockMask.from_topk(scores, 1, (16, 48), block_size=16).full_indices.tolist() == [1]


def predicate(b, h, i, j):
    return (i + b) % 5 <= (j // 3 + h) % 7


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_from_predicate(shape, block_size):
    mask = BlockMask.from_predicate(predicate, shape, block_size=block_size, batch=2, heads=3)
    assert_sees(mask, predicate(*np.indices((2, 3, *shape))))


@pytest.mark.parametrize("within_leading", [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_from_predicate_evaluates_only_blocks_within(rng, within_leading):
    shape, block_size = (150, 200), (32, 64)
    candidates = scattered(rng, shape, block_size, within_leading)
    asked = np.zeros((2, 3, *grid(shape, block_size)), bool)

    def recording(b, h, i, j):
        assert i.min() >= 0
        assert i.max() < shape[0]
        assert j.min() >= 0
        assert j.max() < shape[1]
        asked[b, h, i // 32, j // 64] = True
        return predicate(b, h, i, j)

    within = BlockMask.from_dense(candidates, block_size=block_size)
    mask = BlockMask.from_predicate(recording, shape, block_size=block_size, batch=2, heads=3, within=within)
    assert_sees(mask, predicate(*np.indices((2, 3, *shape))) & candidates)
    listed = BlockMask.from_dense(np.broadcast_to(candidates, (2, 3, *shape)), block_size=block_size)
    assert asked.sum() == listed.stats()["full"] + listed.stats()["partial"]


def test_from_predicate_may_use_tables_and_constant_axes():
    table = np.arange(100) % 3 == 0
    mask = BlockMask.from_predicate(lambda b, h, i, j: table[j], (70, 100), block_size=16)
    assert_sees(mask, np.broadcast_to(table, (1, 1, 70, 100)))


@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")  # many diagonals
@pytest.mark.parametrize("format", ["bsr", "csr", "csc", "coo", "lil", "dok", "dia"])
@pytest.mark.parametrize(("shape", "block_size"), [((128, 256), 64), ((100, 130), (32, 64)), ((130, 70), 16)])
def test_scipy_round_trip(rng, shape, block_size, format):
    dense = scattered(rng, shape, block_size)
    m = scipy.sparse.coo_array(dense[0, 0]).asformat(format)
    mask = BlockMask.from_scipy(m, block_size=block_size)
    assert_sees(mask, dense)
    divides = all(n % b == 0 for n, b in zip(shape, pair(block_size), strict=True))
    assert mask.to_scipy().format == ("bsr" if divides else "csr")
    back = mask.to_scipy(format if divides or format != "bsr" else None)
    assert back.format == format or not divides
    assert back.dtype == bool
    np.testing.assert_array_equal(back.toarray(), dense[0, 0])


@pytest.mark.parametrize("shape", [(0, 50), (50, 0), (40, 40)])
def test_scipy_without_visible_elements(shape):
    mask = BlockMask.from_scipy(scipy.sparse.csr_array(shape), block_size=16)
    assert mask.density == 0
    assert mask.to_scipy("csr").nnz == 0
    assert mask.to_scipy("csr").shape == shape


def test_from_scipy_sums_duplicates_and_skips_stored_zeros():
    m = scipy.sparse.coo_array(([1.0, -1.0, 2.0, 3.0, 0.0], ([0, 0, 1, 1, 2], [0, 0, 5, 5, 2])), shape=(40, 40))
    dense = np.zeros((1, 1, 40, 40), bool)
    dense[0, 0, 1, 5] = True
    assert_sees(BlockMask.from_scipy(m, block_size=16), dense)
    assert m.nnz == 5  # the caller's matrix is left as it was


def test_from_scipy_sums_duplicates_of_csr():
    m = scipy.sparse.csr_array(([1, -1, 1], [3, 3, 2], [0, 3]), shape=(1, 20))
    assert BlockMask.from_scipy(m, block_size=16).to_dense().nonzero()[3].tolist() == [2]
    assert m.nnz == 3  # the caller's matrix is left as it was


def test_from_scipy_takes_blocks_of_a_bsr_matrix_that_are_stored_twice():
    data = np.ones((2, 16, 16), np.int32)
    m = scipy.sparse.bsr_array((data, [0, 0], [0, 2]), shape=(16, 32))
    assert BlockMask.from_scipy(m).full_indices.tolist() == [0]


@pytest.mark.parametrize(("blocksize", "wanted"), [((32, 128), (32, 128)), ((8, 8), (64, 64))])
def test_from_scipy_keeps_an_allowed_blocksize(blocksize, wanted):
    m = scipy.sparse.bsr_array(np.ones((128, 128)), blocksize=blocksize)
    assert BlockMask.from_scipy(m).block_size == wanted


def test_scipy_nested_lists_are_batch_and_heads(rng):
    dense = scattered(rng, (100, 130), 32, (2, 3))
    mask = BlockMask.from_scipy([[scipy.sparse.csr_array(m) for m in heads] for heads in dense], block_size=32)
    assert_sees(mask, dense)
    back = mask.to_scipy()
    np.testing.assert_array_equal([[m.toarray() for m in heads] for heads in back], dense)


def test_scipy_pieces_join_up(rng, monkeypatch):
    monkeypatch.setattr("flashcupy.blocks.convert._PIECE", 100)
    dense = scattered(rng, (300, 200), 32)
    assert_sees(BlockMask.from_scipy(scipy.sparse.csr_array(dense[0, 0]), block_size=32), dense)


def test_chunks_join_up(rng, monkeypatch):
    dense, scores = scattered(rng, (300, 200), 16, (2, 2)), rng.random((19, 13))
    wanted = BlockMask.from_dense(dense, block_size=16)
    best = BlockMask.from_topk(scores, 3, (300, 200), block_size=16)
    monkeypatch.setattr("flashcupy.blocks.bits.CHUNK_ELEMENTS", 700)
    assert BlockMask.from_dense(dense, block_size=16).equals(wanted)
    assert BlockMask.from_topk(scores, 3, (300, 200), block_size=16).equals(best)
    assert_sees(wanted.mT, dense.swapaxes(2, 3))
    assert_sees(wanted.with_block_size(32), dense)


class CudaArray:
    """Looks like an array on a GPU."""

    __cuda_array_interface__: dict = {}  # noqa: RUF012  (only its presence counts)


ONE = (64, 64)
ROWS = (128, 128)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (TypeError, "blocks must be bool", lambda: BlockMask.from_blocks(np.ones((1, 1)), ONE)),
        (TypeError, "mask must be bool", lambda: BlockMask.from_dense(np.ones((4, 4), np.int8))),
        (ValueError, r"blocks must have shape \(2, 2\)", lambda: BlockMask.from_blocks(np.ones((1, 2), bool), ROWS)),
        (ValueError, "at most two leading", lambda: BlockMask.from_blocks(np.ones((1, 1, 1, 1, 1), bool), ONE)),
        (ValueError, "mask must be", lambda: BlockMask.from_dense(np.ones(4, bool))),
        (ValueError, "shape must be", lambda: BlockMask.from_blocks(np.ones((1, 1), bool), (64,))),
        (ValueError, r"shape\[1\] must be an int >= 0", lambda: BlockMask.causal((64, -1))),
        (TypeError, r"shape\[0\] must be an int", lambda: BlockMask.causal((64.0, 1))),
        (ValueError, "int32 indices", lambda: BlockMask.global_tokens((2**36, 0), 0, block_size=16)),
        (ValueError, "indptr must have shape", lambda: BlockMask.from_csr([0, 1], [0], ROWS)),
        (ValueError, "indptr must rise from 0", lambda: BlockMask.from_csr([0, 1, 1], [0, 1], ROWS)),
        (ValueError, "indptr must not fall, got 2 before 1", lambda: BlockMask.from_csr([0, 2, 1], [0], ROWS)),
        (ValueError, r"indices must lie in \[0, 2\)", lambda: BlockMask.from_csr([0, 1, 2], [0, 2], ROWS)),
        (ValueError, r"indices must lie in \[0, 2\)", lambda: BlockMask.from_csr([0, 1, 2], [0, -1], ROWS)),
        (ValueError, "strictly ascending", lambda: BlockMask.from_csr([0, 2, 2], [1, 0], ROWS)),
        (ValueError, "strictly ascending", lambda: BlockMask.from_csr([0, 2, 2], [1, 1], ROWS)),
        (ValueError, "indices must be 1-D", lambda: BlockMask.from_csr([0, 1, 1], [[0]], ROWS)),
        (TypeError, "indices must be an integer", lambda: BlockMask.from_csr([0, 1, 1], [0.5], ROWS)),
        (ValueError, "bits is None", lambda: BlockMask.from_csr([0, 1], [0], ONE, partial=[True])),
        (ValueError, "partial is None", lambda: BlockMask.from_csr([0, 1], [0], ONE, bits=np.ones((1, 64, 64), bool))),
        (
            ValueError,
            r"bits must have shape \(1, 64, 2\)",
            lambda: BlockMask.from_csr([0, 1], [0], ONE, partial=[True], bits=np.ones((2, 64, 2), np.uint32)),
        ),
        (
            TypeError,
            "bits must be uint32",
            lambda: BlockMask.from_csr([0, 1], [0], ONE, partial=[True], bits=np.ones((1, 64, 2), np.uint8)),
        ),
        (
            ValueError,
            "partial must have shape",
            lambda: BlockMask.from_csr([0, 1], [0], ONE, partial=[True, True], bits=np.ones((2, 64, 64), bool)),
        ),
        (ValueError, "ids must be below the 2", lambda: BlockMask.from_ids([[0], [2]], ROWS)),
        (
            ValueError,
            "ids must be distinct in a row, got 1 twice in batch 0, head 0, block row 1",
            lambda: BlockMask.from_ids([[0, 1], [1, 1]], ROWS),
        ),
        (ValueError, "ids must have shape", lambda: BlockMask.from_ids([[0]], ROWS)),
        (ValueError, "ids must have shape", lambda: BlockMask.from_ids([0], ROWS)),
        (TypeError, "ids must be an integer", lambda: BlockMask.from_ids([[0.0], [0.0]], ROWS)),
        (TypeError, "ids must be an integer", lambda: BlockMask.from_ids([[True], [True]], ROWS)),
        (ValueError, "ids must fit in int64", lambda: BlockMask.from_ids(np.full((2, 1), 2**63, np.uint64), ROWS)),
        (ValueError, r"counts must lie in \[0, 1\]", lambda: BlockMask.from_ids([[0], [0]], ROWS, counts=[2, 0])),
        (ValueError, "counts must have shape", lambda: BlockMask.from_ids([[0], [0]], ROWS, counts=[1])),
        (ValueError, "k must be an int >= 0", lambda: BlockMask.from_topk(np.ones((1, 1)), -1, ONE)),
        (TypeError, "k must be an int", lambda: BlockMask.from_topk(np.ones((1, 1)), 1.0, ONE)),
        (TypeError, "scores must be a real", lambda: BlockMask.from_topk(np.ones((1, 1), complex), 1, ONE)),
        (TypeError, "scores must be a real", lambda: BlockMask.from_topk(np.ones((1, 1), "V4"), 1, ONE)),
        (TypeError, "allowed must be bool", lambda: BlockMask.from_topk(np.ones((1, 1)), 1, ONE, allowed=[[1]])),
        (
            ValueError,
            "include must broadcast",
            lambda: BlockMask.from_topk(np.ones((1, 1)), 1, ONE, include=np.ones((3, 1), bool)),
        ),
        (TypeError, "f must return bool", lambda: BlockMask.from_predicate(lambda b, h, i, j: i - j, ONE)),
        (
            ValueError,
            "f must return a shape",
            lambda: BlockMask.from_predicate(lambda b, h, i, j: np.ones(3, bool), ONE),
        ),
        (TypeError, "within must be a BlockMask", lambda: BlockMask.from_predicate(predicate, ONE, within=[[True]])),
        (
            ValueError,
            "within must be a mask of shape",
            lambda: BlockMask.from_predicate(predicate, ONE, within=BlockMask.causal((64, 65))),
        ),
        (
            ValueError,
            "within must be a mask of shape",
            lambda: BlockMask.from_predicate(predicate, ONE, heads=2, within=BlockMask.causal(ONE, heads=3)),
        ),
        (TypeError, "m must hold scipy.sparse", lambda: BlockMask.from_scipy(np.ones((2, 2)))),
        (ValueError, "m must be a sparse matrix, or", lambda: BlockMask.from_scipy([])),
        (
            ValueError,
            "m must hold 2-D matrices of one shape",
            lambda: BlockMask.from_scipy([[scipy.sparse.eye_array(2), scipy.sparse.eye_array(3)]]),
        ),
        (ValueError, "format 'bsr' needs blocks", lambda: BlockMask.causal((100, 100)).to_scipy("bsr")),
        (TypeError, "masked array", lambda: BlockMask.from_dense(np.ma.ones((4, 4), bool))),
        (ValueError, "device must be None, 'cpu' or a CUDA", lambda: BlockMask.causal(ONE, device="tpu")),
    ],
)
def test_malformed_input_is_named(error, words, call):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("block_size", [0, 8, 48, -16, 192, (64,), (64, 64, 64), (64, 20), 64.0, "64", None])
def test_block_sizes_that_are_not_allowed_raise_with_the_list(block_size):
    with pytest.raises(ValueError, match="block_size must be 16, 32, 64, 128 or a multiple of 128"):
        BlockMask.causal((64, 64), block_size=block_size)
