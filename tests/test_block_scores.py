"""Scores of blocks: what each backend computes, what never leaks into it, and what is refused."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from cases import DTYPES, Case, Sizes
from emu.arrays import EmuArray, EmuRuntime
from emu.device import EmuDevice
from first_use_kit import Watched
from naive import assert_close

import flashcupy as fc
from flashcupy import reference_blocks
from flashcupy.bound import coarse
from flashcupy.cuda import block_scores, config, verdicts
from flashcupy.cuda import device as device_module
from flashcupy.cuda.config_scores import ScoresConfig
from flashcupy.cuda.first_use_scores import ScoresCase
from flashcupy.cuda.launch import PlanCache
from flashcupy.errors import FirstUseError, NotWarmedUpError

# Several blocks and tiles either way, none of them ends where the rows do; two query heads share keys.
_SIZES = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=150, kv_len=77, head_dim=20)
# Cells smaller than a tile, larger ones, and either across.
_BLOCK_SIZES = [(16, 16), (32, 128), (128, 16), (384, 64)]


def _normal(*shape, dtype=np.float64):
    return (np.random.default_rng(shape).standard_normal(shape) + 0.25).astype(dtype)


def _check(function, backend, q, k, block_size, **options):
    got = getattr(backend.api, function)(q, k, block_size=block_size, **options)
    sizes = (block_size, block_size) if isinstance(block_size, int) else block_size
    oracle = getattr(reference_blocks, function)
    want, naive = (oracle(q, k, block_size=sizes, **options, **own) for own in ({}, {"arithmetic": coarse(q.dtype)}))
    assert got.dtype == (np.float64 if q.dtype == np.float64 else np.float32)
    assert_close(got, want, naive.astype(got.dtype), num_keys=k.shape[-2])
    return got


# ---- right on every backend ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", _BLOCK_SIZES, ids=lambda size: "x".join(map(str, size)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_mass_in_each_dtype(backend, dtype, block_size):
    problem = Case(("causal",), dtype, _SIZES).make()
    with backend.small_tiles():
        _check("block_mass", backend, problem.q, problem.k, block_size, **problem.options)


@pytest.mark.parametrize(
    ("features", "block_size"),
    [
        (("top_left", "scale"), 16),
        (("window", "alibi", "softcap"), 16),
        (("mask", "sinks"), 128),
        (("bias", "q_lengths"), 128),
        (("sinks", "causal", "q_lengths", "kv_lengths"), 16),
    ],
    ids=lambda x: "+".join(x) if isinstance(x, tuple) else None,
)
def test_mass_with_options(backend, features, block_size):
    problem = Case(features, "float32", _SIZES).make()
    with backend.small_tiles():
        _check("block_mass", backend, problem.q, problem.k, block_size, **problem.options)


def test_mass_in_real_tiles(backend):
    problem = Case(("window",), "float32", replace(_SIZES, batch=(), q_len=70)).make()
    _check("block_mass", backend, problem.q, problem.k, (32, 128), **problem.options)


@pytest.mark.parametrize("block_size", [16, (32, 128), (128, 32)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_pooled_in_each_dtype(backend, dtype, block_size):
    problem = Case((), dtype, _SIZES).make()
    with backend.small_tiles():
        _check("pooled_scores", backend, problem.q, problem.k, block_size)
        _check("pooled_scores", backend, problem.q, problem.k, block_size, scale=-2.0)


def test_pooled_in_real_tiles(backend):
    _check("pooled_scores", backend, _normal(2, 1200, 40, dtype=np.float32), _normal(1, 1100, 40, dtype=np.float32), 16)


@pytest.mark.parametrize("function", ["pooled_scores", "block_mass"])
def test_batch_dims_broadcast_as_in_matmul(backend, function):
    with backend.small_tiles():
        _check(function, backend, _normal(3, 1, 4, 20, 6), _normal(2, 2, 40, 6), 16)
        _check(function, backend, np.broadcast_to(_normal(1, 1, 6), (2, 40, 6)), _normal(1, 50, 6)[:, ::-2], 16)


@pytest.mark.parametrize("function", ["pooled_scores", "block_mass"])
@pytest.mark.parametrize(
    ("q", "k", "expected"),
    [
        ((20, 3), (33, 3), (2, 3)),
        ((20, 1), (1, 33, 1), (1, 2, 3)),
        ((2, 0, 3), (1, 33, 3), (2, 0, 3)),
        ((2, 20, 3), (1, 0, 3), (2, 2, 0)),
        ((0, 2, 20, 3), (2, 33, 3), (0, 2, 2, 3)),
        ((0, 20, 3), (0, 33, 3), (0, 2, 3)),
    ],
)
def test_shapes(backend, function, q, k, expected):
    with backend.small_tiles():
        assert _check(function, backend, _normal(*q), _normal(*k), 16).shape == expected


@pytest.mark.parametrize("function", ["pooled_scores", "block_mass"])
def test_out_is_written_and_returned(backend, function):
    q, k, whole = _normal(2, 40, 8), _normal(1, 50, 8), np.full((2, 8, 3), np.nan)
    out, call = whole[:, ::-2].mT, getattr(backend.api, function)
    with backend.small_tiles():
        assert call(q, k, block_size=16, out=out) is out
        assert np.array_equal(out, call(q, k, block_size=16))
    assert np.isnan(whole[:, ::2]).all()


# ---- what hides, hides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lengths", "mask", "bias"])
def test_what_is_hidden_never_leaks(backend, how):
    q, k = _normal(2, 2, 60, 8, dtype=np.float32), _normal(2, 2, 50, 8, dtype=np.float32)
    visible = np.zeros((60, 50), np.bool_)
    visible[:40, :33] = True
    options = {
        "lengths": {"q_lengths": 40, "kv_lengths": 33},
        "mask": {"mask": visible},
        "bias": {"bias": np.where(visible, 0, -np.inf).astype(np.float32)},
    }[how]
    with backend.small_tiles():
        clean = backend.api.block_mass(q, k, block_size=16, **options)
        q[..., 40:, :] = k[..., 33:, :] = np.nan
        assert np.array_equal(backend.api.block_mass(q, k, block_size=16, **options), clean)
    np.testing.assert_allclose(clean.sum(-1), np.broadcast_to([1, 1, 1, 0], (2, 2, 4)), rtol=1e-6)
    assert not clean[..., 3].any()


def test_a_key_that_is_not_finite_reaches_the_rows_that_see_it_alone(backend):
    q, k = _normal(1, 64, 8), _normal(1, 64, 8)
    k[0, 20] = np.nan
    with backend.small_tiles():
        mass = backend.api.block_mass(q, k, block_size=16, causal=True)
    assert np.isfinite(mass[0, 0]).all()
    assert np.isnan(mass[0, 1:, 1]).all()


def test_the_best_selection_and_its_recall(backend):
    q, k = _normal(2, 120, 8), _normal(2, 120, 8)
    with backend.small_tiles():
        mass = backend.api.block_mass(q, k, block_size=32, causal=True)
    np.testing.assert_allclose(mass.sum(-1), 1)
    chosen = fc.BlockMask.from_topk(mass, 2, (120, 120), block_size=32)
    kept = chosen.to_dense()[0, :, ::32, ::32]
    recall = (mass * kept).sum(-1)
    assert (recall[:, :2] == mass[:, :2].sum(-1)).all()
    np.testing.assert_allclose(recall, np.sort(mass, axis=-1)[..., -2:].sum(-1))


# ---- the oracle ------------------------------------------------------------------------------------------------------


def test_the_oracle_agrees_with_loops_over_blocks():
    q, k = _normal(2, 4, 37, 6), _normal(2, 2, 50, 6)
    sinks = np.linspace(-1, 1, 4)
    mass = reference_blocks.block_mass(q, k, block_size=(16, 32), causal=True, sinks=sinks, q_lengths=[37, 20])
    pooled = reference_blocks.pooled_scores(q, k, block_size=(16, 32), scale=0.5)
    for b, h, i, j in np.ndindex(mass.shape):
        rows, keys = slice(16 * i, 16 * i + 16), slice(32 * j, 32 * j + 32)
        used = (37, 20)[b]
        scores = np.einsum("id,jd->ij", q[b, h, :used], k[b, h // 2]) / np.sqrt(6)
        scores[np.arange(50) > np.arange(used)[:, None] + 50 - used] = -np.inf
        weights = np.exp(scores)
        weights /= weights.sum(axis=1, keepdims=True) + np.exp(sinks[h])
        part = weights[rows, keys]
        assert mass[b, h, i, j] == pytest.approx(part.sum() / len(part) if len(part) else 0)
        means = q[b, h, rows].mean(0), k[b, h // 2, keys].mean(0)
        assert pooled[b, h, i, j] == pytest.approx(0.5 * np.einsum("d,d->", *means))


# ---- what is refused -------------------------------------------------------------------------------------------------

_Q, _K = np.ones((2, 4, 20, 8), np.float32), np.ones((2, 2, 33, 8), np.float32)


@pytest.mark.parametrize("function", ["pooled_scores", "block_mass"])
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": _Q[0, 0, 0]}, ValueError, r"q has shape \(8,\)"),
        ({"q": _Q.astype(np.int32)}, TypeError, "q has dtype int32"),
        ({"q": _Q[:, :3]}, ValueError, "q has 3 heads and k has 2"),
        ({"k": _K[..., :4]}, ValueError, "k has head_dim 4, expected 8"),
        ({"k": _K.astype(np.float16)}, TypeError, "k has dtype float16, expected float32"),
        ({"k": np.ones((3, 2, 33, 8), np.float32)}, ValueError, r"^q, k have batch dims q \(2,\), k \(3,\)"),
        ({"k": np.ma.masked_array(_K)}, TypeError, "k is a masked array"),
        ({"scale": np.inf}, ValueError, "scale is inf"),
        ({"block_size": 48}, ValueError, "block_size must be 16, 32, 64, 128 or a multiple of 128"),
        ({"block_size": 16.0}, ValueError, "block_size must be 16"),
        ({"block_size": (16, 16, 16)}, ValueError, "block_size must be 16"),
        ({"out": np.empty((2, 4, 2, 2), np.float32)}, ValueError, r"out has shape .*, expected \(2, 4, 2, 3\)"),
        ({"out": np.empty((2, 4, 2, 3))}, TypeError, "out has dtype float64, expected float32"),
        ({"out": _Q[:, :, :2, :3]}, ValueError, "out shares memory with q"),
        ({"out": [[0.0]]}, TypeError, "out is a list"),
    ],
)
def test_bad_input(backend, function, changes, error, message):
    with pytest.raises(error, match=message):
        getattr(backend.api, function)(**{"q": _Q, "k": _K, "block_size": 16, **changes})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"causal": "left"}, ValueError, "causal is 'left'"),
        ({"window": (-1, 0)}, ValueError, "window is"),
        ({"softcap": 0.0}, ValueError, "softcap is 0.0"),
        ({"mask": np.ones((20, 33))}, TypeError, "mask has dtype float64"),
        ({"bias": np.ones((20, 20), np.float32)}, ValueError, "bias has shape"),
        ({"alibi_slopes": np.ones(3)}, ValueError, "alibi_slopes has shape"),
        ({"sinks": np.ones(2)}, ValueError, "sinks has shape"),
        ({"kv_lengths": 34}, ValueError, "kv_lengths runs from 34"),
        ({"dropout": 0.5}, TypeError, "unexpected keyword argument 'dropout'"),
    ],
)
def test_bad_options(backend, options, error, message):
    with pytest.raises(error, match=message):
        backend.api.block_mass(_Q, _K, **options)


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_linear():
    def peak(length):
        x = np.zeros((1, length, 16), np.float32)
        tracemalloc.start()
        try:
            fc.block_mass(x, x, window=(200, 0), block_size=1024)
            return tracemalloc.get_traced_memory()[1] / x.nbytes
        finally:
            tracemalloc.stop()

    peak(2048)
    assert peak(16384) <= peak(2048)


# ---- what a device sees of a call ------------------------------------------------------------------------------------


class _Counting(Watched):
    """Compiles and launches nothing, and does not wait."""

    def __init__(self):
        super().__init__()
        self.allocated = 0

    def empty(self, shape, dtype, **place):
        array = super().empty(shape, dtype, **place)
        self.allocated += array.nbytes
        return array

    def to_host(self, array):
        raise AssertionError("a call must not wait for the device")


def _install(device, patch, folder, *, check):
    patch.setattr(device_module, "_installed", [EmuRuntime(device)])
    patch.setattr(block_scores, "_plans", PlanCache())
    patch.setenv("FLASHCUPY_CHECK", check)
    patch.setenv("FLASHCUPY_CACHE_DIR", str(folder))


@pytest.fixture
def counting(monkeypatch, tmp_path):
    device = _Counting()
    _install(device, monkeypatch, tmp_path, check="off")
    return device


def test_on_a_device_memory_is_linear_and_nothing_is_read_back(counting):
    x = EmuArray(np.zeros((2, 4096, 8), np.float32), counting)
    mass = fc.block_mass(x, x, block_size=64, kv_lengths=4000)
    assert counting.allocated - mass.nbytes <= 3 * 4 * 2 * 4096 + 2 * 256  # lse, statistics, the length twice
    counting.allocated = 0
    pooled = fc.pooled_scores(x, x, block_size=64)
    assert counting.allocated - pooled.nbytes == 2 * x.nbytes // 64
    kinds = [name.partition("_f32")[0].partition("_t128")[0] for name in counting.entries]
    assert kinds == ["upload", "fwd_generic", "upload", "block_mass", *["block_means_float"] * 2, "pooled_scores"]


@pytest.mark.parametrize("function", ["pooled_scores", "block_mass"])
def test_under_capture_only_what_was_called_before_runs(counting, function):
    x = EmuArray(np.zeros((2, 100, 8), np.float32), counting)
    counting.capturing = True
    with pytest.raises(NotWarmedUpError, match=f"flashcupy.{function} .* call it with arrays like these before"):
        getattr(fc, function)(x, x)
    counting.capturing = False
    getattr(fc, function)(x, x)
    launched = counting.entries[:]
    counting.capturing = True
    getattr(fc, function)(x, x)
    assert counting.entries == launched * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "right", "wrong"), [("block_mass", "sum / seeing", "sum"), ("pooled_scores", "params.scale *", "")]
)
def test_a_wrong_kernel_is_condemned_alone(monkeypatch, tmp_path, function, right, wrong):
    from flashcupy.cuda.sources import kernels_dir

    translation_unit = ScoresConfig.translation_unit

    def broken(self):
        source = (kernels_dir() / f"{self.kernel}.cu").read_text()
        assert self.kernel != function or right in source
        own = source.replace(right, wrong) if self.kernel == function else source
        return translation_unit(self).replace(f"#include <{self.kernel}.cu>", own)

    device = EmuDevice()
    monkeypatch.setattr(config, "_table", ["small"])
    _install(device, monkeypatch, tmp_path, check="first-use")
    monkeypatch.setattr(verdicts, "_good", set())
    monkeypatch.setattr(ScoresConfig, "translation_unit", broken)
    x = device.from_host(_normal(1, 40, 24, dtype=np.float32))
    case = ScoresCase(function, "float32")
    for call in (lambda: getattr(fc, function)(x, x), lambda: case.compute(device)):  # of the check's own shapes
        with pytest.raises(FirstUseError, match=f"failed its first-use check .* of {function}-float32"):
            call()
    fc.attention(x, x, x)
