"""The tensor-core backward through the API: both ways to dq, load paths, head dims, edges, orders of lanes and copies.

What it computes with each option is in the tests of all backends.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import numpy as np
import pytest
from backends import BACKENDS
from cases import DTYPES, FEATURES, NUMBERS, Case, Sizes, normal
from harness import check
from naive import assert_close, naive_bwd

import flashcupy as fc
from flashcupy import reference

_TENSOR_CORES = [one for one in BACKENDS if one.id in ("emu_sm80", "cupy")]
_ALL = ("float16", "bfloat16", "tf32", "float32")
_QUICK = ("float16", "float32", pytest.param("tf32", marks=pytest.mark.slow))  # bfloat16 goes float16's way
_NAMES = ("q", "k", "v", "bias", "sinks")


@pytest.fixture(params=_TENSOR_CORES)
def backend(request):
    with request.param.active(), request.param.small_tiles():
        yield request.param


@pytest.fixture(params=_TENSOR_CORES)
def real(request):
    with request.param.active():
        yield request.param


@pytest.fixture(params=[one for one in _TENSOR_CORES if one.id == "emu_sm80"])
def emulator(request):
    with request.param.active(), request.param.small_tiles():
        yield request.param


def _operands(numbers, *, q_len=45, kv_len=77, head_dim=40, v_dim=24, heads=2, batch=()):
    """q, k, v, dout."""
    dtype, rng = DTYPES[NUMBERS[numbers]["dtype"]], np.random.default_rng(0)
    shapes = (heads, q_len, head_dim), (1, kv_len, head_dim), (1, kv_len, v_dim), (heads, q_len, v_dim)
    return [np.ascontiguousarray(normal(rng, (*batch, *shape), dtype)) for shape in shapes]


def _options(numbers):
    return {"precision": NUMBERS[numbers].get("precision", "highest")}


def _gradients(api, q, k, v, dout, *, deterministic=False, dlse=None, wrt=("q", "k", "v"), **options):
    _, residuals = api.attention_fwd(q, k, v, **options)
    return api.attention_bwd(dout, residuals, dlse=dlse, wrt=wrt, deterministic=deterministic)


def _require_right(grads, q, k, v, dout, precision="highest", **options):
    want = reference.attention_bwd(dout, q, k, v, **options)
    coarse = naive_bwd(dout, q, k, v, q.dtype, precision, **options)
    keys = max(q.shape[-2], k.shape[-2])
    for got, truth, low in zip(grads, want, coarse, strict=True):
        if got is not None:
            assert_close(got, truth, low, grad=True, num_keys=keys, precision=precision)


def _equal(grads, others):
    return all(a is b or np.array_equal(a, b) for a, b in zip(grads, others, strict=True))


def _launched(backend, monkeypatch, call):
    """Names of the kernels that a call launches."""
    if backend.name == "cupy":
        pytest.skip("launches are seen on the emulated device")
    names, launch = [], backend.device.launch
    with monkeypatch.context() as patch:
        patch.setattr(
            backend.device, "launch", lambda kernel, *rest: (names.append(kernel.name), launch(kernel, *rest))
        )
        call()
    return [name.partition("_sm80")[0] for name in names]


# ---- which kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrt", "deterministic", "expected"),
    [
        (("q", "k", "v"), False, ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64"]),
        (("q", "v"), False, ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64"]),
        (("q", "k", "v"), True, ["bwd_rows", "dkv", "dq"]),
        (("q",), False, ["bwd_rows", "dq"]),
        (("k",), False, ["bwd_rows", "dkv"]),
        (("sinks",), False, ["bwd_rows", "sum_sinks_t256"]),
        (("q", "k", "v", "bias"), False, ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64", "dbias"]),
    ],
)
def test_kernels_are_those_that_gradients_need(backend, monkeypatch, wrt, deterministic, expected):
    q, k, v, dout = _operands("float16")
    options = {"sinks": np.zeros(2, np.float32)} if "sinks" in wrt else {}
    options |= {"bias": np.zeros((45, 77), np.float32)} if "bias" in wrt else {}
    _, residuals = backend.api.attention_fwd(q, k, v, **options)

    def call():
        backend.api.attention_bwd(dout, residuals, wrt=wrt, deterministic=deterministic)

    names = [name for name in _launched(backend, monkeypatch, call) if not name.startswith("upload")]
    assert names == expected


def test_float32_has_no_sums_of_all_blocks(backend, monkeypatch):
    """Sums of many tiles have to keep what rounding loses, which additions to memory cannot."""
    names = _launched(backend, monkeypatch, lambda: _gradients(backend.api, *_operands("float32")))
    assert names[-2:] == ["dkv", "dq"]


@pytest.mark.parametrize("numbers", _ALL)
def test_every_choice_of_gradients_has_the_same_bits(backend, numbers):
    operands = _operands(numbers, head_dim=24)
    options = {"sinks": np.array([0.5, -1], np.float32), "bias": np.linspace(-1, 1, 77, dtype=np.float32)}
    options |= _options(numbers)
    whole = _gradients(backend.api, *operands, wrt=_NAMES, deterministic=True, **options)
    _require_right(whole, *operands, **options)
    for name in _NAMES:
        one = _gradients(backend.api, *operands, wrt=(name,), **options)
        for got, want, field in zip(one, whole, one._fields, strict=True):
            assert (got is None) == (field != f"d{name}")
            assert got is None or np.array_equal(got, want)


def test_a_dout_of_float32_is_left_to_another_family(backend, monkeypatch):
    q, k, v, dout = _operands("float16")
    wide = dout.astype(np.float32) * np.float32(1.001)
    names = _launched(backend, monkeypatch, lambda: _gradients(backend.api, q, k, v, wide))
    assert any("generic" in name for name in names)
    _require_right(_gradients(backend.api, q, k, v, wide), q, k, v, wide)


# ---- deterministic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [*_QUICK, pytest.param("bfloat16", marks=pytest.mark.slow)])
@pytest.mark.parametrize("features", [(), ("causal", "dropout"), ("mask", "softcap"), ("bias",), ("blocks", "alibi")])
def test_deterministic_gradients_are_right(backend, features, numbers):
    sizes = Sizes(q_len=45, kv_len=77, head_dim=24, v_dim=40)
    check(Case(features, sizes=sizes, **NUMBERS[numbers]), backend, deterministic=True)


@pytest.mark.parametrize(
    "numbers", ["float16", *(pytest.param(one, marks=pytest.mark.slow) for one in ("float32", "tf32"))]
)
def test_deterministic_gradients_have_the_same_bits_in_every_order_of_blocks(emulator, numbers):
    operands = _operands(numbers, q_len=90, kv_len=130, batch=(2,))
    runs = []
    for seed, order in enumerate(("forward", "reverse", "random", "random")):
        with emulator.device.using(lane_order=order, block_order=order, seed=seed):
            runs.append(_gradients(emulator.api, *operands, deterministic=True, causal=True, **_options(numbers)))
    assert all(_equal(run, runs[0]) for run in runs[1:])


def test_other_gradients_are_right_in_every_order_of_blocks(emulator):
    """Their last bits may differ: blocks add to dq."""
    operands = _operands("float16", q_len=90, kv_len=130, batch=(2,))
    for seed, order in enumerate(("forward", "reverse", "random")):
        with emulator.device.using(lane_order=order, block_order=order, seed=seed):
            _require_right(_gradients(emulator.api, *operands, causal=True), *operands, causal=True)


# ---- load and store paths --------------------------------------------------------------------------------------------

_LAYOUTS = {
    "misaligned": lambda x: np.zeros(x.size + 1, x.dtype)[1:].reshape(x.shape),
    "off_elements": lambda x: np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape),
    "odd_rows": lambda x: np.zeros((*x.shape[:-1], x.shape[-1] + 1), x.dtype)[..., :-1],
    "columns_first": lambda x: np.zeros(x.mT.shape, x.dtype).mT,
    "rows_first": lambda x: np.zeros(x.swapaxes(0, 1).shape, x.dtype).swapaxes(0, 1),
    "all_reversed": lambda x: np.zeros_like(x)[::-1, ::-1, ::-1],
}


def _filled(layout, x):
    view = _LAYOUTS[layout](x)
    view[...] = x
    return view


@pytest.mark.parametrize("layout", _LAYOUTS)
@pytest.mark.parametrize("numbers", ["float16", "float32", pytest.param("tf32", marks=pytest.mark.slow)])
def test_any_strides_give_the_same_bits(backend, layout, numbers):
    operands = _operands(numbers)
    plain = _gradients(backend.api, *operands, causal=True, deterministic=True, **_options(numbers))
    _require_right(plain, *operands, causal=True, **_options(numbers))
    q, k, v, dout = (_filled(layout, x) for x in operands)
    out = fc.AttentionGrads(*(_LAYOUTS[layout](x) for x in plain[:3]))
    _, residuals = backend.api.attention_fwd(q, k, v, causal=True, **_options(numbers))
    backend.api.attention_bwd(dout, residuals, deterministic=True, out=out)
    assert _equal(out, plain)


@pytest.mark.parametrize("which", range(4))
def test_each_operand_has_a_path_of_its_own(backend, which):
    operands = _operands("float16")
    plain = _gradients(backend.api, *operands, deterministic=True)
    operands[which] = _filled("odd_rows", operands[which])
    assert _equal(_gradients(backend.api, *operands, deterministic=True), plain)


def test_what_lies_beside_the_columns_is_not_touched(backend):
    """Head dims between buckets: a NaN beside them would show, and so would a gradient that is too wide."""
    operands = _operands("float16")
    frames = [np.full((*x.shape[:-1], 64), np.nan, x.dtype) for x in operands]
    q, k, v, dout = (frame[..., 8 : 8 + x.shape[-1]] for frame, x in zip(frames, operands, strict=True))
    for view, x in zip((q, k, v, dout), operands, strict=True):
        view[...] = x
    targets = [np.full((x.shape[0], x.shape[1] + 4, 64), 7, x.dtype) for x in operands[:3]]
    out = fc.AttentionGrads(
        *(to[:, 2:-2, 8 : 8 + x.shape[-1]] for to, x in zip(targets, operands[:3], strict=True)), None, None
    )
    _, residuals = backend.api.attention_fwd(q, k, v)
    for deterministic in (False, True):
        backend.api.attention_bwd(dout, residuals, out=out, deterministic=deterministic)
        _require_right(out, *operands)
        for to, own in zip(targets, out[:3], strict=True):
            frame = to.copy()
            frame[:, 2:-2, 8 : 8 + own.shape[-1]] = 7
            assert (frame == 7).all()


# ---- head dims -------------------------------------------------------------------------------------------------------

_DIMS = (1, 8, 16, 31, 40, 64, 72, 96, 128, 136, 200, 256)


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize(("head_dim", "v_dim"), list(zip(_DIMS, (*_DIMS[5:], *_DIMS[:5]), strict=True)))
def test_head_dims(backend, head_dim, v_dim, numbers):
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=33, kv_len=65, head_dim=head_dim, v_dim=v_dim)
    check(Case(("causal",), sizes=sizes, **NUMBERS[numbers]), backend, pooled_size=256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("numbers", "deterministic"),
    # float32 has one way alone.
    [("float16", False), ("float16", True), ("bfloat16", False), ("tf32", True), ("float32", True)],
)
@pytest.mark.parametrize("head_dim", [64, 128, 136, 256])
def test_head_dims_with_real_tiles(real, head_dim, numbers, deterministic):
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=150, kv_len=200, head_dim=head_dim, v_dim=head_dim)
    check(Case(("causal",), sizes=sizes, **NUMBERS[numbers]), real, deterministic=deterministic)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["float16", "tf32"])
@pytest.mark.parametrize(("head_dim", "v_dim"), [(64, 300), (192, 128), (72, 200), (256, 32)])
def test_values_of_another_width_with_real_tiles(real, head_dim, v_dim, numbers):
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=150, kv_len=200, head_dim=head_dim, v_dim=v_dim)
    check(Case((), sizes=sizes, **NUMBERS[numbers]), real)


_BLOCKS = [(16, 256), (16, 40), (32, 136), (64, 24), (128, 64)]


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize(("block", "head_dim"), _BLOCKS)
def test_blocks_of_a_list(backend, block, head_dim, numbers):
    _check_blocks(backend, block, head_dim, numbers)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize(("block", "head_dim"), _BLOCKS[1:])
def test_blocks_of_a_list_with_real_tiles(real, block, head_dim, numbers):
    _check_blocks(real, block, head_dim, numbers)


def _check_blocks(backend, block, head_dim, numbers):
    operands = _operands(numbers, q_len=150, kv_len=140, head_dim=head_dim)
    rng = np.random.default_rng(block)
    dense = np.kron(rng.random((10, 9)) < 0.5, np.ones((16, 16), np.bool_))[:150, :140]
    dense &= rng.random((150, 140)) < 0.9
    dense[:, 32:48] = True
    options = {"block_mask": fc.BlockMask.from_dense(dense, block_size=block), "causal": "top-left"}
    for deterministic in (False, True):
        grads = _gradients(backend.api, *operands, deterministic=deterministic, **_options(numbers), **options)
        _require_right(grads, *operands, **_options(numbers), **options)


def test_blocks_need_not_be_square(backend):
    operands = _operands("float16", q_len=150, kv_len=140)
    dense = np.random.default_rng(0).random((150, 140)) < 0.1
    for size in ((16, 64), (64, 16), (32, 128)):
        options = {"block_mask": fc.BlockMask.from_dense(dense, block_size=size)}
        _require_right(_gradients(backend.api, *operands, **options), *operands, **options)


# ---- edges -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("scale", [-0.7, 0.0, 3.0])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_any_scale(backend, scale, softcap, numbers):
    operands = _operands(numbers)
    options = {"scale": scale, "softcap": softcap, "causal": True, **_options(numbers)}
    _require_right(_gradients(backend.api, *operands, **options), *operands, **options)


@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("features", [("causal",), ("top_left",), ("window", "sinks", "alibi")])
@pytest.mark.parametrize(("q_len", "kv_len"), [(90, 33), (1, 70), (70, 1), (33, 33), (32, 64)])
def test_shapes_of_the_band(backend, features, q_len, kv_len, numbers):
    sizes = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=q_len, kv_len=kv_len, head_dim=24, v_dim=24)
    check(Case(features, sizes=sizes, **NUMBERS[numbers]), backend)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("heads", [(6, 6), (6, 3), (6, 1)])
def test_query_heads_share_keys(backend, heads, deterministic):
    sizes = Sizes(q_heads=heads[0], kv_heads=heads[1], head_dim=16, v_dim=16)
    check(Case(("causal", "alibi"), "float16", sizes), backend, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("numbers", _QUICK)
@pytest.mark.parametrize("zero", ["q_len", "kv_len", "v_dim"])
def test_nothing_there(backend, zero, numbers, deterministic):
    operands = _operands(numbers, **{zero: 0})
    grads = _gradients(backend.api, *operands, deterministic=deterministic, **_options(numbers))
    _require_right(grads, *operands, **_options(numbers))


@pytest.mark.parametrize("numbers", _QUICK)
def test_used_lengths_from_none_to_all(backend, numbers):
    operands = [
        np.ascontiguousarray(np.broadcast_to(x, (5, *x.shape))) for x in _operands(numbers, head_dim=24, v_dim=24)
    ]
    options = {"q_lengths": np.array([0, 1, 45, 17, 33]), "kv_lengths": np.array([77, 0, 1, 16, 32]), "causal": True}
    dlse = np.random.default_rng(0).standard_normal((5, 2, 45)).astype(np.float32)
    for deterministic in (False, True):
        grads = _gradients(
            backend.api, *operands, dlse=dlse, deterministic=deterministic, **_options(numbers), **options
        )
        _require_right(grads, *operands, dlse=dlse, **_options(numbers), **options)


@pytest.mark.parametrize("numbers", _QUICK)
def test_operands_that_broadcast_over_the_batch(backend, numbers):
    q, k, v, dout = _operands(numbers, batch=(3,))
    k, v = k[:1], v[0]
    grads = _gradients(backend.api, q, k, v, dout, **_options(numbers))
    _require_right(grads, q, k, v, dout, **_options(numbers))


def _one_order(backend):
    """Blocks of which several add to one sum of dq do so one after the other."""
    if backend.name == "cupy":
        return nullcontext()
    return backend.device.using(lane_order="forward", block_order="forward")


_STARTS_Q, _STARTS_K = np.array([1, 1, 2, 35, 36, 107]), np.array([3, 40, 40, 73, 74, 119])
_PACKED = ("causal", "top_left", "window", "softcap", "mask", "bias", "alibi", "sinks", "blocks", "dropout")


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("feature", _PACKED)
def test_packed_sequences_have_the_gradients_of_a_padded_batch(backend, feature, numbers, deterministic):
    """The same bits, but for the sums of keys' blocks: those too in one order of lanes and blocks."""
    operands = _operands(numbers, q_len=110, kv_len=120)
    sizes = Sizes(batch=(5,), q_heads=2, kv_heads=1, q_len=71, kv_len=45)
    options = FEATURES[feature](np.random.default_rng(4), sizes, operands[0].dtype) | _options(numbers)
    starts = [_STARTS_Q, _STARTS_K, _STARTS_K, _STARTS_Q]
    q, k, v, dout = operands
    _, residuals = backend.api.attention_varlen_fwd(
        q, k, v, _STARTS_Q, _STARTS_K, max_seqlen_q=sizes.q_len, max_seqlen_k=sizes.kv_len, **options
    )
    with _one_order(backend):
        grads = backend.api.attention_bwd(dout, residuals, deterministic=deterministic)
    lengths = {"q_lengths": np.diff(_STARTS_Q), "kv_lengths": np.diff(_STARTS_K)}
    padded = []
    for x, own in zip(operands, starts, strict=True):
        padded.append(np.zeros((5, len(x), sizes.q_len if own is _STARTS_Q else sizes.kv_len, x.shape[-1]), x.dtype))
        for n, (start, end) in enumerate(itertools.pairwise(own)):
            padded[-1][n, :, : end - start] = x[:, start:end]
    with _one_order(backend):
        want = _gradients(backend.api, *padded, deterministic=deterministic, **lengths, **options)
    for got, other, own in zip(grads[:3], want[:3], starts, strict=False):
        for n, (start, end) in enumerate(itertools.pairwise(own)):
            expected = other[n, :, : end - start]
            if backend.name == "cupy" and not deterministic:
                assert np.abs(got[:, start:end] - expected).max(initial=0) <= 1e-2
            else:
                assert np.array_equal(got[:, start:end], expected)
        assert not got[:, : own[0]].any()
        assert not got[:, own[-1] :].any()


@pytest.mark.parametrize("numbers", ["float16", "float32"])
@pytest.mark.parametrize("sinks", [False, True])
def test_gradients_from_the_output_and_lse_alone(backend, numbers, sinks):
    """Without the forward's statistics: rows that saw nothing are then known by their scores."""
    q, k, v, dout = _operands(numbers)
    mask = np.random.default_rng(1).random((45, 77)) < 0.5
    mask[:3], mask[16:18], mask[40:] = False, False, False
    options = {"mask": mask, **({"sinks": np.array([0.5, -3.0], np.float32)} if sinks else {})}
    out, lse = backend.api.attention(q, k, v, return_lse=True, **options)
    residuals = (
        fc.AttentionResiduals.from_arrays if backend.name == "numpy" else backend.api.AttentionResiduals.from_arrays
    )
    dlse = np.random.default_rng(0).standard_normal(lse.shape).astype(np.float32)
    wrt = ("q", "k", "v", "sinks") if sinks else ("q", "k", "v")
    grads = backend.api.attention_bwd(dout, residuals(q, k, v, out, lse, **options), dlse=dlse, wrt=wrt)
    _require_right(grads, q, k, v, dout, dlse=dlse, **options)
    assert not grads.dq[:, :3].any()


@pytest.mark.parametrize("numbers", [*_QUICK])
@pytest.mark.parametrize("size", [1e-3, 30.0])
def test_scores_of_any_size(backend, size, numbers):
    """From an almost even softmax to one that a single key takes."""
    q, k, v, dout = _operands(numbers, heads=8, q_len=64)
    q = (q * q.dtype.type(size)).astype(q.dtype)
    for deterministic in (False, True):
        grads = _gradients(backend.api, q, k, v, dout, deterministic=deterministic, **_options(numbers))
        _require_right(grads, q, k, v, dout, **_options(numbers))


def test_keys_that_there_are_not_add_nothing_to_dq(backend):
    """Rows of zeros have the score 0: where lse is far below, a weight that overflows."""
    q, k, v, dout = _operands("float16", kv_len=40)
    q, k = np.abs(q) * 4, -np.abs(k) * 4
    for deterministic in (False, True):
        grads = _gradients(backend.api, q, k, v, dout, deterministic=deterministic, scale=1.0)
        _require_right(grads, q, k, v, dout, scale=1.0)


# ---- orders ----------------------------------------------------------------------------------------------------------

_ORDERS = list(itertools.product(("forward", "reverse", "random"), ("eager", "lazy")))


_QUICK_ORDERS = [(False, 40, "float16"), (True, 24, "float16")]
_SLOW_ORDERS = [
    one
    for one in itertools.product((False, True), (24, 40), ("float16", "tf32", "float32"))
    if one not in _QUICK_ORDERS
]


@pytest.mark.parametrize(
    ("listed", "head_dim", "numbers"),
    [*_QUICK_ORDERS, *(pytest.param(*one, marks=pytest.mark.slow) for one in _SLOW_ORDERS)],
)
def test_the_same_bits_in_every_order_of_lanes_and_copies(emulator, listed, head_dim, numbers):
    operands = _operands(numbers, q_len=70, kv_len=150, head_dim=head_dim, v_dim=40)
    options = {"causal": True, "dropout": 0.2, "seed": 3, "bias": np.linspace(-1, 1, 150, dtype=np.float32)}
    if listed:
        dense = np.kron(np.random.default_rng(3).random((5, 10)) < 0.6, np.ones((16, 16), np.bool_))[:70, :150]
        options["block_mask"] = fc.BlockMask.from_dense(dense, block_size=16)
    wrt = ("q", "k", "v", "bias")
    results = []
    for lanes, copies in _ORDERS:
        with emulator.device.using(lane_order=lanes, block_order="forward", copies=copies, seed=7):
            both = [
                _gradients(emulator.api, *operands, wrt=wrt, deterministic=one, **_options(numbers), **options)
                for one in (False, True)
            ]
        results.append([grad for grads in both for grad in grads])
    _require_right(results[0][:5], *operands, **_options(numbers), **options)
    _require_right(results[0][5:], *operands, **_options(numbers), **options)
    assert all(_equal(one, results[0]) for one in results[1:])


@pytest.mark.parametrize("copies", ["lazy", pytest.param("eager", marks=pytest.mark.slow)])
def test_lists_of_few_and_of_no_blocks(emulator, copies):
    """From no tile at all to more than there are stages, both ways."""
    operands = _operands("float16", q_len=96, kv_len=160)
    blocks = np.zeros((6, 10), np.bool_)
    for row, count in enumerate((0, 1, 2, 3, 5, 7)):
        blocks[row, np.random.default_rng(row).permutation(10)[:count]] = True
    options = {"block_mask": fc.BlockMask.from_blocks(blocks, (96, 160), block_size=16)}
    with emulator.device.using(copies=copies):
        for deterministic in (False, True):
            _require_right(
                _gradients(emulator.api, *operands, deterministic=deterministic, **options), *operands, **options
            )
