"""The tensor-core backward through the API: both ways to dq, load paths, head dims, orders of lanes and copies.

What it computes with each option is in the tests of all backends.
"""

from __future__ import annotations

import itertools

import gradients
import numpy as np
import pytest
import tensor_cores
from cases import NUMBERS, Case, Sizes
from harness import check
from tensor_cores import LAYOUTS

import flashcupy as fc

_ALL = ("float16", "bfloat16", "tf32", "float32")
_QUICK = ("float16", "float32", pytest.param("tf32", marks=pytest.mark.slow))  # bfloat16 goes float16's way
_NAMES = ("q", "k", "v", "bias", "sinks")


backend = tensor_cores.fixture()
real = tensor_cores.fixture(small=False)
emulator = tensor_cores.fixture(emulated=True)


def _launched(emulator, monkeypatch, call):
    """Names of the kernels that a call launches."""
    names, launch = [], emulator.device.launch
    with monkeypatch.context() as patch:
        patch.setattr(
            emulator.device, "launch", lambda kernel, *rest: (names.append(kernel.name), launch(kernel, *rest))
        )
        call()
    return [name.partition("_sm80")[0] for name in names]


# ---- which kernels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrt", "deterministic", "expected"),
    [
        (("q", "k", "v"), False, ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64"]),
        pytest.param(("q", "v"), False, ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64"], marks=pytest.mark.slow),
        (("q", "k", "v"), True, ["bwd_rows", "dkv", "dq"]),
        (("q",), False, ["bwd_rows", "dq"]),
        (("k",), False, ["bwd_rows", "dkv"]),
        (("sinks",), False, ["bwd_rows", "sum_sinks_t256"]),
        pytest.param(
            ("q", "k", "v", "bias"),
            False,
            ["bwd_rows", "dkvq", "bwd_dq_sums_f16_d64", "dbias"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_kernels_are_those_that_gradients_need(emulator, monkeypatch, wrt, deterministic, expected):
    q, k, v, dout = gradients.operands("float16")
    options = {"sinks": np.zeros(2, np.float32)} if "sinks" in wrt else {}
    options |= {"bias": np.zeros((45, 77), np.float32)} if "bias" in wrt else {}
    _, residuals = emulator.api.attention_fwd(q, k, v, **options)

    def call():
        emulator.api.attention_bwd(dout, residuals, wrt=wrt, deterministic=deterministic)

    names = [name for name in _launched(emulator, monkeypatch, call) if not name.startswith("upload")]
    assert names == expected


@pytest.mark.slow
def test_float32_has_no_sums_of_all_blocks(emulator, monkeypatch):
    """Sums of many tiles have to keep what rounding loses, which additions to memory cannot."""
    names = _launched(emulator, monkeypatch, lambda: gradients.of(emulator.api, *gradients.operands("float32")))
    assert names[-2:] == ["dkv", "dq"]


@pytest.mark.parametrize("numbers", _ALL)
def test_every_choice_of_gradients_has_the_same_bits(backend, numbers):
    operands = gradients.operands(numbers, head_dim=24)
    options = {"sinks": np.array([0.5, -1], np.float32), "bias": np.linspace(-1, 1, 77, dtype=np.float32)}
    options |= gradients.options(numbers)
    whole = gradients.of(backend.api, *operands, wrt=_NAMES, deterministic=True, **options)
    gradients.require_right(whole, *operands, **options)
    for name in _NAMES:
        one = gradients.of(backend.api, *operands, wrt=(name,), **options)
        for got, want, field in zip(one, whole, one._fields, strict=True):
            assert (got is None) == (field != f"d{name}")
            assert got is None or np.array_equal(got, want)


def test_a_dout_of_float32_is_left_to_another_family(emulator, monkeypatch):
    q, k, v, dout = gradients.operands("float16")
    wide = dout.astype(np.float32) * np.float32(1.001)
    names = _launched(emulator, monkeypatch, lambda: gradients.of(emulator.api, q, k, v, wide))
    assert any("generic" in name for name in names)
    gradients.require_right(gradients.of(emulator.api, q, k, v, wide), q, k, v, wide)


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
    operands = gradients.operands(numbers, q_len=90, kv_len=130, batch=(2,))
    runs = []
    for seed, order in enumerate(("forward", "reverse", "random", "random")):
        with emulator.device.using(lane_order=order, block_order=order, seed=seed):
            runs.append(
                gradients.of(emulator.api, *operands, deterministic=True, causal=True, **gradients.options(numbers))
            )
    assert all(gradients.equal(run, runs[0]) for run in runs[1:])


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["float16", "float32"])
def test_deterministic_gradients_repeat(real, numbers):
    """On a GPU, where many blocks run at once and none waits for another."""
    operands = gradients.operands(
        numbers, q_len=700, kv_len=900, head_dim=64, v_dim=64, batch=(4,) if real.name == "cupy" else ()
    )
    if real.name != "cupy":
        operands = [x[:, :130] for x in operands]
    runs = [
        gradients.of(real.api, *operands, deterministic=True, causal=True, **gradients.options(numbers))
        for _ in range(20 if real.name == "cupy" else 2)
    ]
    assert all(gradients.equal(run, runs[0]) for run in runs[1:])


def test_other_gradients_are_right_in_every_order_of_blocks(emulator):
    """Their last bits may differ: blocks add to dq."""
    operands = gradients.operands("float16", q_len=90, kv_len=130, batch=(2,))
    for seed, order in enumerate(("forward", "reverse", "random")):
        with emulator.device.using(lane_order=order, block_order=order, seed=seed):
            gradients.require_right(gradients.of(emulator.api, *operands, causal=True), *operands, causal=True)


# ---- load and store paths --------------------------------------------------------------------------------------------


# The forward has the others.
_BACKWARD_LAYOUTS = ("misaligned", "off_elements", "odd_rows", "columns_first", "rows_first", "all_reversed")


@pytest.mark.parametrize("layout", _BACKWARD_LAYOUTS)
@pytest.mark.parametrize("numbers", ["float16", "float32", pytest.param("tf32", marks=pytest.mark.slow)])
def test_any_strides_give_the_same_bits(backend, layout, numbers):
    operands = gradients.operands(numbers)
    plain = gradients.of(backend.api, *operands, causal=True, deterministic=True, **gradients.options(numbers))
    gradients.require_right(plain, *operands, causal=True, **gradients.options(numbers))
    q, k, v, dout = (tensor_cores.filled(layout, x) for x in operands)
    out = fc.AttentionGrads(*(LAYOUTS[layout](x) for x in plain[:3]))
    _, residuals = backend.api.attention_fwd(q, k, v, causal=True, **gradients.options(numbers))
    backend.api.attention_bwd(dout, residuals, deterministic=True, out=out)
    assert gradients.equal(out, plain)


@pytest.mark.parametrize("which", range(4))
def test_each_operand_has_a_path_of_its_own(backend, which):
    operands = gradients.operands("float16")
    plain = gradients.of(backend.api, *operands, deterministic=True)
    operands[which] = tensor_cores.filled("odd_rows", operands[which])
    assert gradients.equal(gradients.of(backend.api, *operands, deterministic=True), plain)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize(("dims", "pad"), [((100, 36), 0), ((36, 100), 4), ((38, 34), 2)])
def test_rows_that_are_no_whole_pieces(backend, dims, pad, deterministic):
    """Copies of 8 bytes and of 4; a NaN beside a row would show."""
    operands = gradients.operands("float16", head_dim=dims[0], v_dim=dims[1])
    frames = [np.full((*x.shape[:-1], x.shape[-1] + pad), np.nan, x.dtype) for x in operands]
    views = [frame[..., : x.shape[-1]] for frame, x in zip(frames, operands, strict=True)]
    for view, x in zip(views, operands, strict=True):
        view[...] = x
    grads = gradients.of(backend.api, *views, causal=True, deterministic=deterministic)
    gradients.require_right(grads, *operands, causal=True)


def test_what_lies_beside_the_columns_is_not_touched(backend):
    """Head dims between buckets: a NaN beside them would show, and so would a gradient that is too wide."""
    operands = gradients.operands("float16")
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
        gradients.require_right(out, *operands)
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
    operands = gradients.operands(numbers, q_len=150, kv_len=140, head_dim=head_dim)
    rng = np.random.default_rng(block)
    dense = np.kron(rng.random((10, 9)) < 0.5, np.ones((16, 16), np.bool_))[:150, :140]
    dense &= rng.random((150, 140)) < 0.9
    dense[:, 32:48] = True
    options = {"block_mask": fc.BlockMask.from_dense(dense, block_size=block), "causal": "top-left"}
    for deterministic in (False, True):
        grads = gradients.of(
            backend.api, *operands, deterministic=deterministic, **gradients.options(numbers), **options
        )
        gradients.require_right(grads, *operands, **gradients.options(numbers), **options)


def test_blocks_need_not_be_square(backend):
    operands = gradients.operands("float16", q_len=150, kv_len=140)
    dense = np.random.default_rng(0).random((150, 140)) < 0.1
    for size in ((16, 64), (64, 16), (32, 128)):
        options = {"block_mask": fc.BlockMask.from_dense(dense, block_size=size)}
        gradients.require_right(gradients.of(backend.api, *operands, **options), *operands, **options)


# ---- orders ----------------------------------------------------------------------------------------------------------

_ORDERS = list(itertools.product(("forward", "reverse", "random"), ("eager", "lazy")))


@pytest.mark.slow
@pytest.mark.parametrize("numbers", ["float16", "tf32", "float32"])
@pytest.mark.parametrize("head_dim", [24, 40])
@pytest.mark.parametrize("listed", [False, True])
def test_the_same_bits_in_every_order_of_lanes_and_copies(emulator, listed, head_dim, numbers):
    operands = gradients.operands(numbers, q_len=70, kv_len=150, head_dim=head_dim, v_dim=40)
    options = {"causal": True, "dropout": 0.2, "seed": 3, "bias": np.linspace(-1, 1, 150, dtype=np.float32)}
    if listed:
        dense = np.kron(np.random.default_rng(3).random((5, 10)) < 0.6, np.ones((16, 16), np.bool_))[:70, :150]
        options["block_mask"] = fc.BlockMask.from_dense(dense, block_size=16)
    wrt = ("q", "k", "v", "bias")
    results = []
    for lanes, copies in _ORDERS:
        with emulator.device.using(lane_order=lanes, block_order="forward", copies=copies, seed=7):
            both = [
                gradients.of(
                    emulator.api, *operands, wrt=wrt, deterministic=one, **gradients.options(numbers), **options
                )
                for one in (False, True)
            ]
        results.append([grad for grads in both for grad in grads])
    gradients.require_right(results[0][:5], *operands, **gradients.options(numbers), **options)
    gradients.require_right(results[0][5:], *operands, **gradients.options(numbers), **options)
    assert all(gradients.equal(one, results[0]) for one in results[1:])


@pytest.mark.slow
@pytest.mark.parametrize("copies", ["lazy", "eager"])
def test_lists_of_few_and_of_no_blocks(emulator, copies):
    """From no tile at all to more than there are stages, both ways."""
    operands = gradients.operands("float16", q_len=96, kv_len=160)
    blocks = np.zeros((6, 10), np.bool_)
    for row, count in enumerate((0, 1, 2, 3, 5, 7)):
        blocks[row, np.random.default_rng(row).permutation(10)[:count]] = True
    options = {"block_mask": fc.BlockMask.from_blocks(blocks, (96, 160), block_size=16)}
    with emulator.device.using(copies=copies):
        for deterministic in (False, True):
            gradients.require_right(
                gradients.of(emulator.api, *operands, deterministic=deterministic, **options),
                *operands,
                **options,
            )
