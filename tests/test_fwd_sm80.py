"""The tensor-core forward through the API: load paths, head dims, edges, and any order of lanes and copies.

What it computes with each option is in the tests of all backends.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensor_cores
from backends import EmuBackend
from cases import DTYPES, FEATURES, NUMBERS, Case, Sizes, normal
from harness import check_forward
from naive import assert_close, naive, naive_varlen
from tensor_cores import LAYOUTS

import flashcupy as fc
from flashcupy import reference

_ALL = ("float16", "bfloat16", "tf32", "float32")
_QUICK = ("float16", "tf32", "float32")  # bfloat16 goes float16's way
_ONE_QUICK = ("float16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("bfloat16", "tf32", "float32")))


def _every_second(ones, others):
    """Half of all pairs, with as many of each."""
    return [(one, other) for i, one in enumerate(ones) for j, other in enumerate(others) if (i + j) % 2 == 0]


_TWO_QUICK = ("float16", "float32", *(pytest.param(one, marks=pytest.mark.slow) for one in ("bfloat16", "tf32")))


backend = tensor_cores.fixture()
real = tensor_cores.fixture(small=False)
emulator = tensor_cores.fixture(emulated=True)


def _operands(numbers, *, q_len=45, kv_len=77, head_dim=40, v_dim=24, heads=2):
    dtype, rng = DTYPES[NUMBERS[numbers]["dtype"]], np.random.default_rng(0)
    shapes = (heads, q_len, head_dim), (1, kv_len, head_dim), (1, kv_len, v_dim)
    return [np.ascontiguousarray(normal(rng, shape, dtype)) for shape in shapes]


def _options(numbers):
    return {"precision": NUMBERS[numbers].get("precision", "highest")}


def _require_right(results, q, k, v, precision="highest", **options):
    want = reference.attention(q, k, v, **options)
    coarse = naive(q, k, v, q.dtype, precision, **options)
    for got, truth, low in zip(results, want, coarse, strict=True):
        assert_close(got, truth, low, num_keys=k.shape[-2], precision=precision)


def test_tensor_cores_serve_these_tests(backend):
    if backend.name == "cupy":
        pytest.importorskip("cupy")
    q, k, v = _operands("float16")
    assert "_sm80_f16_" in backend.api.explain(q, k, v).config


# ---- load and store paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("numbers", _QUICK)
def test_any_strides_give_the_same_bits(backend, layout, numbers):
    operands = _operands(numbers)
    plain, lse = backend.api.attention(*operands, causal=True, return_lse=True, **_options(numbers))
    _require_right((plain, lse), *operands, causal=True, **_options(numbers))
    own = [tensor_cores.filled(layout, x) for x in operands]
    out = LAYOUTS[layout](plain)
    got, other = backend.api.attention(*own, causal=True, return_lse=True, out=out, **_options(numbers))
    assert got is out
    assert np.array_equal(out, plain)
    assert np.array_equal(other, lse)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_each_operand_has_a_path_of_its_own(backend, which):
    operands = _operands("float16")
    plain = backend.api.attention(*operands)
    operands[which] = tensor_cores.filled("odd_rows", operands[which])
    assert np.array_equal(backend.api.attention(*operands), plain)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_may_write_float32(backend, dtype):
    q, k, v = _operands(dtype, v_dim=72)
    wide = np.empty((2, 45, 72), np.float32)
    backend.api.attention(q, k, v, out=wide)
    assert np.array_equal(wide.astype(q.dtype), backend.api.attention(q, k, v))
    assert not np.array_equal(wide, wide.astype(q.dtype).astype(np.float32))


def test_what_lies_beyond_the_columns_is_not_read(backend):
    """Head dims between buckets: a NaN beside them would show. The probe of frames is about what is written."""
    shapes = (2, 45, 40), (1, 77, 40), (1, 77, 24)
    frames = [np.full((*shape[:-1], 64), np.nan, np.float16) for shape in shapes]
    views = [frame[..., 8 : 8 + shape[-1]] for frame, shape in zip(frames, shapes, strict=True)]
    for view, x in zip(views, _operands("float16"), strict=True):
        view[...] = x
    out = np.full((2, 49, 40), 7, np.float16)[:, 2:47, 8:32]
    backend.api.attention(*views, out=out)
    assert np.array_equal(out, backend.api.attention(*_operands("float16")))


def _between_nan(x, pad):
    """Rows `pad` elements apart from one another, with NaN in between; so are what comes before and after them."""
    frame = np.full((*x.shape[:-1], x.shape[-1] + pad), np.nan, x.dtype)
    whole = np.concatenate([np.full(16, np.nan, x.dtype), frame.ravel(), np.full(16, np.nan, x.dtype)])
    view = whole[16:-16].reshape(frame.shape)[..., : x.shape[-1]]
    view[...] = x
    return view


# Elements of 16 bits: rows are multiples of 8 bytes, of 4, and of 8 with half a copy of columns that are not there.
_HALVES = [(100, 0), (36, 0), (100, 4), (100, 2), (38, 0), (34, 2), (35, 1), (37, 3), (98, 30)]


@pytest.mark.parametrize(("head_dim", "pad"), _HALVES)
def test_rows_that_are_no_whole_pieces(backend, head_dim, pad):
    """They come by copies of 8 or 4 bytes, whichever way those arrive; nothing beside a row is read."""
    operands = _operands("float16", head_dim=head_dim, v_dim=head_dim)
    results = backend.api.attention(*(_between_nan(x, pad) for x in operands), causal=True, return_lse=True)
    _require_right(results, *operands, causal=True)
    gathered = (tensor_cores.filled("spaced", x) for x in operands)
    want = backend.api.attention(*gathered, causal=True, return_lse=True)
    assert all(np.array_equal(got, other) for got, other in zip(results, want, strict=True))


@pytest.mark.parametrize("numbers", ["tf32", "float32"])
@pytest.mark.parametrize("head_dim", [33, 34, 40])
def test_words_that_are_no_whole_pieces(backend, head_dim, numbers):
    """Copies of 4 and 8 bytes at full accuracy; gathered, and rounded on the way, where TF32 is permitted."""
    operands = _operands(numbers, head_dim=head_dim, v_dim=head_dim)
    results = backend.api.attention(*(_between_nan(x, 1) for x in operands), return_lse=True, **_options(numbers))
    _require_right(results, *operands, **_options(numbers))


@pytest.mark.parametrize("numbers", ["tf32", "float32"])
@pytest.mark.parametrize("payload", [0x7F800001, 0x7FC00000, 0x7FFFFFFF])
def test_a_nan_of_any_payload_stays_one(backend, numbers, payload):
    """Tensor cores ignore 13 bits of a float32, and rounding adds to those."""
    for which in (1, 2):
        operands = _operands(numbers)
        operands[which].view(np.uint32)[0, 5] = payload
        assert np.isnan(backend.api.attention(*operands, **_options(numbers))).all()


def test_a_nan_that_some_queries_see_stays_with_their_tiles(backend):
    """Others of a tile that visits it may get it: a hidden weight is 0, and 0 * NaN is NaN."""
    q, k, v = _operands("float16", q_len=77)
    clean = backend.api.attention(q, k, v, causal=True)
    v[0, 70] = np.nan
    out = backend.api.attention(q, k, v, causal=True)
    assert np.isnan(out[:, 70:]).all()
    assert np.array_equal(out[:, :64], clean[:, :64])


# ---- head dims -------------------------------------------------------------------------------------------------------

_DIMS = (1, 8, 16, 31, 40, 64, 72, 96, 128, 136, 200, 256)


@pytest.mark.parametrize("numbers", _TWO_QUICK)
@pytest.mark.parametrize(("head_dim", "v_dim"), list(zip(_DIMS, (*_DIMS[5:], *_DIMS[:5]), strict=True)))
def test_head_dims(backend, head_dim, v_dim, numbers):
    """Of float32 the narrowest are left to plain FMA."""
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=33, kv_len=65, head_dim=head_dim, v_dim=v_dim)
    check_forward(Case(("causal",), sizes=sizes, **NUMBERS[numbers]), backend, pooled_size=256)


@pytest.mark.slow
@pytest.mark.parametrize(("head_dim", "numbers"), _every_second([*_DIMS, 300], _ALL))
def test_head_dims_with_real_tiles(real, head_dim, numbers):
    """Beyond one tile of the real table; wide values in several chunks, a head_dim too wide for tensor cores."""
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=150, kv_len=200, head_dim=head_dim, v_dim=head_dim)
    check_forward(Case(("causal",), sizes=sizes, **NUMBERS[numbers]), real)


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "numbers"), _every_second([(64, 300), (192, 128), (32, 256), (256, 32)], _ALL))
def test_values_of_another_width_with_real_tiles(real, dims, numbers):
    head_dim, v_dim = dims
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=150, kv_len=200, head_dim=head_dim, v_dim=v_dim)
    check_forward(Case((), sizes=sizes, **NUMBERS[numbers]), real)


_BLOCKS = [(16, 256), (16, 40), (32, 136), (64, 24), (128, 64)]


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize(("block", "head_dim"), _BLOCKS)
def test_blocks_of_a_list(backend, block, head_dim, numbers):
    _check_blocks(backend, block, head_dim, numbers)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", _ALL)
@pytest.mark.parametrize(("block", "head_dim"), _BLOCKS)
def test_blocks_of_a_list_with_real_tiles(real, block, head_dim, numbers):
    _check_blocks(real, block, head_dim, numbers)


def _check_blocks(backend, block, head_dim, numbers):
    q, k, v = _operands(numbers, q_len=150, kv_len=140, head_dim=head_dim)
    rng = np.random.default_rng(block)
    dense = np.kron(rng.random((10, 9)) < 0.5, np.ones((16, 16), np.bool_))[:150, :140]
    dense &= rng.random((150, 140)) < 0.9
    dense[:, 32:48] = True
    options = {"block_mask": fc.BlockMask.from_dense(dense, block_size=block), "causal": "top-left"}
    results = backend.api.attention(q, k, v, return_lse=True, **_options(numbers), **options)
    _require_right(results, q, k, v, **_options(numbers), **options)


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 1e-30, 3.0])
def test_any_scale(backend, scale, numbers):
    q, k, v = _operands(numbers)
    options = {"scale": scale, "causal": True, "bias": np.linspace(-1, 1, 77, dtype=np.float32)}
    results = backend.api.attention(q, k, v, return_lse=True, **_options(numbers), **options)
    _require_right(results, q, k, v, **_options(numbers), **options)


@pytest.mark.parametrize("option", [{}, {"softcap": 2.0}, {"dropout": 0.3, "seed": 5}])
def test_a_negative_scale_with_an_infinite_score_hidden(backend, option):
    """Hidden keys may hold anything, whatever the sign that their scores get."""
    q, k, v = _operands("float32")
    mask = np.ones((45, 77), np.bool_)
    mask[:, 20] = False
    options = {"scale": -0.7, "mask": mask, **option}
    want = backend.api.attention(q, k, v, **options)
    for value in (np.inf, -np.inf, np.nan):
        k[:, 20], v[:, 20] = value, value
        assert np.array_equal(backend.api.attention(q, k, v, **options), want)


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("sinks", [False, True])
def test_rows_that_see_nothing(backend, numbers, sinks):
    q, k, v = _operands(numbers)
    mask = np.random.default_rng(1).random((45, 77)) < 0.5
    mask[:3], mask[16:18], mask[40:] = False, False, False
    options = {"mask": mask, **({"sinks": np.array([0.5, -3.0], np.float32)} if sinks else {})}
    out, lse = backend.api.attention(q, k, v, return_lse=True, **_options(numbers), **options)
    _require_right((out, lse), q, k, v, **_options(numbers), **options)
    assert not out[:, :3].any()
    assert np.array_equal(lse[:, 0], options.get("sinks", [-np.inf, -np.inf]))


@pytest.mark.parametrize("numbers", _TWO_QUICK)
@pytest.mark.parametrize("features", [("causal",), ("top_left",), ("window",), ("window", "sinks", "alibi")])
@pytest.mark.parametrize(("q_len", "kv_len"), [(90, 33), (1, 70), (70, 1), (33, 33), (32, 64)])
def test_shapes_of_the_band(backend, features, q_len, kv_len, numbers):
    sizes = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, head_dim=24, v_dim=24)
    check_forward(Case(features, sizes=sizes, **NUMBERS[numbers]), backend)


@pytest.mark.parametrize("heads", [(6, 6), (6, 3), (6, 1)])
def test_query_heads_share_keys(backend, heads):
    sizes = Sizes(q_heads=heads[0], kv_heads=heads[1], head_dim=16, v_dim=16)
    check_forward(Case(("causal",), "float16", sizes), backend)


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("zero", ["q_len", "kv_len", "v_dim"])
def test_nothing_there(backend, zero, numbers):
    q, k, v = _operands(numbers, **{zero: 0})
    out, lse = backend.api.attention(q, k, v, return_lse=True, **_options(numbers))
    _require_right((out, lse), q, k, v, **_options(numbers))


@pytest.mark.parametrize("numbers", _QUICK)
def test_used_lengths_from_none_to_all(backend, numbers):
    dtype, rng = DTYPES[NUMBERS[numbers]["dtype"]], np.random.default_rng(2)
    q, k, v = (normal(rng, (5, heads, rows, 24), dtype) for heads, rows in ((2, 45), (1, 77), (1, 77)))
    options = {"q_lengths": np.array([0, 1, 45, 17, 33]), "kv_lengths": np.array([77, 0, 1, 16, 32]), "causal": True}
    results = backend.api.attention(q, k, v, return_lse=True, **_options(numbers), **options)
    _require_right(results, q, k, v, **_options(numbers), **options)


_STARTS_Q, _STARTS_K = np.array([1, 1, 2, 35, 36, 107]), np.array([3, 40, 40, 73, 74, 119])


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("columns", [24, 25])
def test_packed_sequences_that_start_anywhere(backend, columns, numbers):
    """Odd starts, with rows that are 16 bytes apart and with rows that are not; sequences of no and of one row."""
    q, k, v = _operands(numbers, q_len=110, kv_len=120, head_dim=columns, v_dim=columns)
    cu_q, cu_k = _STARTS_Q, _STARTS_K
    options = {"causal": True, "sinks": np.array([0.5, -1], np.float32), "max_seqlen_q": 71, "max_seqlen_k": 45}
    results = backend.api.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **_options(numbers), **options)
    want = reference.attention_varlen(q, k, v, cu_q, cu_k, **options)
    coarse = naive_varlen(q, k, v, cu_q, cu_k, q.dtype, **_options(numbers), **options)
    for got, truth, low in zip(results, want, coarse, strict=True):
        assert_close(got, truth, low, num_keys=77, **_options(numbers))


_PACKED = ("causal", "top_left", "window", "softcap", "mask", "bias", "alibi", "sinks", "blocks", "dropout")


@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("feature", _PACKED)
def test_packed_sequences_have_the_bits_of_a_padded_batch(backend, feature, numbers):
    q, k, v = _operands(numbers, q_len=110, kv_len=120)
    sizes = Sizes(batch=(5,), q_heads=2, kv_heads=1, q_len=71, kv_len=45)
    options = FEATURES[feature](np.random.default_rng(4), sizes, q.dtype) | _options(numbers)
    longest = {"max_seqlen_q": sizes.q_len, "max_seqlen_k": sizes.kv_len}
    out, lse = backend.api.attention_varlen(q, k, v, _STARTS_Q, _STARTS_K, return_lse=True, **longest, **options)
    lengths = {"q_lengths": np.diff(_STARTS_Q), "kv_lengths": np.diff(_STARTS_K)}
    padded = [np.zeros((5, len(x), rows, x.shape[-1]), x.dtype) for x, rows in ((q, 71), (k, 45), (v, 45))]
    for x, to, starts in zip((q, k, v), padded, (_STARTS_Q, _STARTS_K, _STARTS_K), strict=True):
        for n, (start, end) in enumerate(itertools.pairwise(starts)):
            to[n, :, : end - start] = x[:, start:end]
    want, want_lse = backend.api.attention(*padded, return_lse=True, **lengths, **options)
    for n, (start, end) in enumerate(itertools.pairwise(_STARTS_Q)):
        assert np.array_equal(out[:, start:end], want[n, :, : end - start])
        assert np.array_equal(lse[:, start:end], want_lse[n, :, : end - start])


@pytest.mark.parametrize("numbers", [*_QUICK, "bfloat16"])
@pytest.mark.parametrize("size", [1e-3, 30.0, 1000.0])
def test_scores_of_any_size(backend, size, numbers):
    """From an almost even softmax to one that a single key takes. Few rows have a key that almost ties."""
    q, k, v = _operands(numbers, heads=8, q_len=64)
    q = (q * q.dtype.type(size)).astype(q.dtype)
    results = backend.api.attention(q, k, v, return_lse=True, **_options(numbers))
    _require_right(results, q, k, v, **_options(numbers))


# ---- orders ----------------------------------------------------------------------------------------------------------

_ORDERS = list(itertools.product(("forward", "reverse", "random"), ("eager", "lazy")))


@pytest.mark.parametrize("numbers", _ONE_QUICK)
@pytest.mark.parametrize("head_dim", [24, 40], ids=["one_stage", "two_stages"])
@pytest.mark.parametrize("listed", [False, True], ids=["band", "list"])
def test_the_same_bits_in_every_order_of_lanes_and_copies(emulator, listed, head_dim, numbers):
    q, k, v = _operands(numbers, q_len=70, kv_len=150, head_dim=head_dim, v_dim=40)
    options = {"causal": True, "dropout": 0.2, "seed": 3, "bias": np.linspace(-1, 1, 150, dtype=np.float32)}
    if listed:
        dense = np.kron(np.random.default_rng(3).random((5, 10)) < 0.6, np.ones((16, 16), np.bool_))[:70, :150]
        options["block_mask"] = fc.BlockMask.from_dense(dense, block_size=16)
    results = []
    for lanes, copies in _ORDERS:
        with emulator.device.using(lane_order=lanes, block_order=lanes, copies=copies, seed=7):
            results.append(emulator.api.attention(q, k, v, return_lse=True, **_options(numbers), **options))
    _require_right(results[0], q, k, v, **_options(numbers), **options)
    for out, lse in results[1:]:
        assert np.array_equal(out, results[0][0])
        assert np.array_equal(lse, results[0][1])


@pytest.mark.parametrize("copies", ["eager", "lazy"])
def test_lists_of_few_and_of_no_blocks(emulator, copies):
    """From no tile at all to one more than there are stages."""
    q, k, v = _operands("float16", q_len=96, kv_len=160)
    blocks = np.zeros((6, 10), np.bool_)
    for row, count in enumerate((0, 1, 2, 3, 5, 7)):
        blocks[row, np.random.default_rng(row).permutation(10)[:count]] = True
    options = {"block_mask": fc.BlockMask.from_blocks(blocks, (96, 160), block_size=16)}
    with emulator.device.using(copies=copies):
        results = emulator.api.attention(q, k, v, return_lse=True, **options)
    _require_right(results, q, k, v, **options)


def test_the_emulated_gpu_is_an_a100():
    properties = EmuBackend("sm80").device.properties
    assert (properties.compute_capability, properties.shared_memory) == ((8, 0), 163 << 10)
