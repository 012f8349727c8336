"""Every option alone and every pair of options together, forward and backward, within the contract's bound."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from cases import FEATURES, NUMBERS, SHAPES, Case, Sizes, pairs
from harness import check
from naive import assert_close, naive

from flashcupy import reference

_DTYPES = ("float32", "float64", "float16", "bfloat16")


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: f"{s.q_len}x{s.kv_len}")
def test_plain(backend, sizes, numbers):
    with backend.small_tiles():
        check(Case((), sizes=sizes, **NUMBERS[numbers]), backend)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("feature", FEATURES)
def test_each_option(backend, feature, numbers):
    with backend.small_tiles():
        check(Case((feature,), **NUMBERS[numbers]), backend)


_PAIRS = [
    Case(features, dtype, sizes, seed)
    for seed, (features, dtype, sizes) in enumerate(
        zip(pairs(), itertools.cycle(_DTYPES), itertools.cycle(SHAPES[:3]), strict=False)
    )
]


# A third of them at once, all of them among the slow ones.
_SPREAD = [case if n % 3 == 0 else pytest.param(case, marks=pytest.mark.slow) for n, case in enumerate(_PAIRS)]


@pytest.mark.parametrize("case", _SPREAD, ids=str)
def test_each_pair_of_options(backend, case):
    if backend.name == "emu_sm80" and case.dtype == "float64":
        case = replace(case, dtype="float16")  # tensor cores have no float64
    with backend.small_tiles():
        check(case, backend)


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda s: f"{s.q_len}x{s.kv_len}")
def test_everything_at_once(backend, sizes):
    features = ("causal", "window", "softcap", "mask", "bias", "alibi", "sinks", "blocks", "dropout")
    with backend.small_tiles():
        check(Case((*features, "q_lengths", "kv_lengths"), "float64", sizes), backend)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("features", pairs(), ids="+".join)
def test_each_pair_in_each_dtype_and_shape(backend, features, dtype):
    # The bound of float64 is absolute. The others' compares with the naive computation, which needs rows and keys in
    # number: with one row a head the largest error of either is one row's luck, with one key naive makes none at all.
    for number, sizes in enumerate(SHAPES if dtype == "float64" else SHAPES[:3]):
        case = Case(features, dtype, sizes, seed=1)
        if number % 2:
            check(case, backend)
        else:
            with backend.small_tiles():
                check(case, backend)


@pytest.mark.parametrize(
    "features",
    [
        (),
        ("causal",),
        pytest.param(("window", "sinks"), marks=pytest.mark.slow),
        ("blocks", "causal"),
        ("dropout", "bias"),
    ],
)
def test_full_tiles(backend, features):
    """Sizes beyond one tile of the real configuration."""
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=600, kv_len=1100, head_dim=32, v_dim=24)
    check(Case(features, "float32", sizes), backend)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("growth", [1.0, 30.0, 1000.0])
def test_scores_that_keep_growing(backend, growth, dtype):
    """Each key outweighs all earlier ones, so that the running reference has to move again and again."""
    rng = np.random.default_rng(0)
    q = np.abs(rng.standard_normal((2, 40, 16))).astype(dtype)
    k = np.broadcast_to(np.linspace(0, growth, 150)[:, None], (2, 150, 16)).astype(dtype)
    v = rng.standard_normal((2, 150, 9)).astype(dtype)
    with backend.small_tiles():
        results = backend.api.attention(q, k, v, return_lse=True)
    truth, coarse = reference.attention(q, k, v), naive(q, k, v, dtype)
    for got, want, low in zip(results, truth, coarse, strict=True):
        assert_close(got, want, low, num_keys=150)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_long_rows(backend, numbers):
    """Sums over 16384 keys: what makes careless float32 accumulation break the bound."""
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=16, kv_len=16384, head_dim=64, v_dim=64)
    check(Case((), sizes=sizes, **NUMBERS[numbers]), backend)


@pytest.mark.parametrize("head_dim", [1, 31, 64, 96, 128, 192, 256, 512])
def test_head_dims(backend, head_dim):
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=33, kv_len=65, head_dim=head_dim, v_dim=head_dim // 2 + 1)
    check(Case(("causal",), "float32", sizes), backend)
