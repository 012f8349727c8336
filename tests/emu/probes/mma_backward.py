"""The probes of the tensor-core backward, by name: problems of a few tiles, and few kernels for all of them.

Tiles are the small ones: 32 x 32, two warps, results in chunks of 32 columns. Heads of at most 32 columns have one
stage, those of 33 to 64 two stages and two chunks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from backends import EmuBackend
from cases import DTYPES, NUMBERS, Sizes
from naive import assert_close, naive_bwd, naive_varlen_bwd

import flashcupy as fc
from emu.probes.agree import Probe
from emu.probes.mma_exact import LAYOUTS, LN2, Array, Layout, require
from emu.probes.schedules import block_mask
from flashcupy import reference
from flashcupy.bound import rounded_to_tf32

_ONE_STAGE = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=32, v_dim=24)
_TWO_STAGES = Sizes(batch=(), q_heads=4, kv_heads=2, q_len=77, kv_len=45, head_dim=40, v_dim=56)
# The first tile of queries sees no key.
_FEW_KEYS = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=90, kv_len=33, head_dim=40, v_dim=40)
# Lists of more than two tiles.
_LISTED = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=150, kv_len=130, head_dim=40, v_dim=56)
# Heads of dout are not as far apart as those of q.
_TOGETHER = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=32, v_dim=24)
# Two tiles of keys see nothing.
_FEW_QUERIES = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=32, kv_len=77, head_dim=32, v_dim=24)
_ODD = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=23, v_dim=21)
_LENGTHS = Sizes(batch=(3,), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=24, v_dim=24)
_SHARED = Sizes(batch=(2,), q_heads=2, kv_heads=1, q_len=45, kv_len=77, head_dim=24, v_dim=24)

_RNG = np.random.default_rng(7)
_MASK = _RNG.random((4, 45, 77)) < 0.6
_SPARSE = _RNG.random((45, 77)) < 0.04  # a key that is seen by one query of a tile, if at all
_UNSEEN, _BLIND = np.arange(77) % 7 == 3, np.arange(45) % 6 == 1
_HIDES = ~(_BLIND[:, None] | _UNSEEN)


def _operands(numbers: str, sizes: Sizes) -> tuple[Array, ...]:
    """q, k, v, dout, each by itself in memory, and dlse."""
    rng, dtype = np.random.default_rng(0), DTYPES[NUMBERS[numbers]["dtype"]]
    queries, keys = (*sizes.batch, sizes.q_heads, sizes.q_len), (*sizes.batch, sizes.kv_heads, sizes.kv_len)
    shapes = (*queries, sizes.head_dim), (*keys, sizes.head_dim), (*keys, sizes.v_dim), (*queries, sizes.v_dim)
    operands = ((rng.standard_normal(shape) + 0.25).astype(dtype) for shape in shapes)
    return *operands, rng.standard_normal(queries).astype(np.float32)


def _require_right(grads: Any, expected: Any, coarse: Any, keys: int, precision: str) -> None:
    for got, want, low in zip(grads, expected, coarse, strict=True):
        if got is not None:
            assert_close(got, want, low, grad=True, num_keys=keys, precision=precision)


def gradients(
    numbers: str = "float16",
    sizes: Sizes = _ONE_STAGE,
    *,
    ways: tuple[bool, ...] = (False,),
    from_lse: bool = False,
    layout: Layout = lambda x: x,
    **options: Any,
) -> Probe:
    """All gradients within the bound of the naive computation, deterministic or not as each of `ways` says.

    `layout` is that of dout alone.
    """
    precision = NUMBERS[numbers].get("precision", "highest")
    wrt = "q", "k", "v", *(name for name in ("bias", "sinks") if name in options)

    def run(backend: EmuBackend) -> None:
        q, k, v, dout, dlse = _operands(numbers, sizes)
        dout = layout(dout)
        out, residuals = backend.api.attention_fwd(q, k, v, precision=precision, **options)
        if from_lse:
            lse = residuals.lse
            residuals = backend.api.AttentionResiduals.from_arrays(q, k, v, out, lse, precision=precision, **options)
        expected = reference.attention_bwd(dout, q, k, v, dlse=dlse, **options)
        coarse = naive_bwd(dout, q, k, v, q.dtype, precision, dlse=dlse, **options)
        for deterministic in ways:
            grads = backend.api.attention_bwd(dout, residuals, wrt=wrt, dlse=dlse, deterministic=deterministic)
            _require_right(grads, expected, coarse, max(sizes.q_len, sizes.kv_len), precision)

    return run


def hidden(sizes: Sizes, keys: Array, queries: Array, **options: Any) -> Probe:
    """Keys that no query sees, and queries that see no key, hold NaN, and change no bit where blocks run in order."""

    def run(backend: EmuBackend) -> None:
        q, k, v, dout, dlse = _operands("float16", sizes)
        results = []
        for poison in (None, np.nan):
            if poison is not None:
                k[..., keys, :], v[..., keys, :] = poison, poison
                q[..., queries, :], dout[..., queries, :] = poison, poison
            _, residuals = backend.api.attention_fwd(q, k, v, **options)
            with backend.device.using(lane_order="forward", block_order="forward"):
                results.append(backend.api.attention_bwd(dout, residuals, dlse=dlse)[:3])
        for one, other in zip(*results, strict=True):
            assert np.isfinite(one).all(), "inf and nan lie elsewhere"
            assert np.array_equal(one, other), "what is hidden leaks"

    return run


# Sequences of no, of one and of many rows, that start and end anywhere, and rows of none.
_CU_Q, _CU_K = np.array([1, 1, 2, 35, 36, 69, 75]), np.array([3, 20, 20, 53, 54, 70, 75])


def packed(backend: EmuBackend) -> None:
    q, k, v, dout, dlse = _operands("float16", Sizes((), 2, 1, 77, 77, 24, 24))
    args, options = (q, k, v, _CU_Q, _CU_K), {"max_seqlen_q": 33, "max_seqlen_k": 33, "causal": True}
    _, residuals = backend.api.attention_varlen_fwd(*args, **options)
    expected = reference.attention_varlen_bwd(dout, *args, dlse=dlse, **options)
    coarse = naive_varlen_bwd(dout, *args, q.dtype, dlse=dlse, **options)
    grads = backend.api.attention_varlen_bwd(dout, residuals, dlse=dlse)
    _require_right(grads, expected, coarse, 33, "highest")


def queries_that_there_are_not(backend: EmuBackend) -> None:
    """A NaN among the keys reaches whoever is computed beside the queries that see it, and is not dq of those."""
    q, k, v, dout, _ = _operands("float16", Sizes((), 2, 1, 45, 40, 24, 24))
    k[..., 3, 5] = np.nan
    _, residuals = backend.api.attention_fwd(q, k, v, q_lengths=np.array(20))
    dq = backend.api.attention_bwd(dout, residuals).dq
    assert np.isnan(dq[..., :20, :]).any()
    assert not dq[..., 20:, :].any(), "inf and nan lie elsewhere"


def keys_that_there_are_not(backend: EmuBackend) -> None:
    """Rows of zeros have the score 0: where lse is far below, a weight that overflows."""
    q, k, v, dout, _ = _operands("float16", Sizes((), 2, 1, 45, 40, 24, 24))
    q, k = np.abs(q) * 4, -np.abs(k) * 4
    _, residuals = backend.api.attention_fwd(q, k, v, scale=1.0)
    expected = reference.attention_bwd(dout, q, k, v, scale=1.0)
    coarse = naive_bwd(dout, q, k, v, q.dtype, scale=1.0)
    _require_right(backend.api.attention_bwd(dout, residuals), expected, coarse, 45, "highest")


def tf32_operands(backend: EmuBackend) -> None:
    """Weights of 2^-6, and a dout that is rounded to nearest, not cut off: that is 2^-12 too little."""
    q, k, v, _, _ = _operands("tf32", Sizes((), 2, 1, 45, 64, 32, 24))
    q[...] = 0
    dout = np.random.default_rng(1).uniform(0.5, 1, (2, 45, 24)).astype(np.float32)
    _, residuals = backend.api.attention_fwd(q, k, v, precision="tf32")
    got = backend.api.attention_bwd(dout, residuals, wrt=("v",))[2]
    require(got, reference.attention_bwd(rounded_to_tf32(dout), q, k, v)[2])


def huge_sink(backend: EmuBackend) -> None:
    """exp(sink) is infinite, and a row that sees no key has a weight of 0 for it."""
    q, k, v, dout, dlse = _operands("float16", _ONE_STAGE)
    options = {"mask": _HIDES, "sinks": np.array([900, -1, 2, 0], np.float32)}
    _, residuals = backend.api.attention_fwd(q, k, v, **options)
    got = backend.api.attention_bwd(dout, residuals, wrt=("sinks",), dlse=dlse)[4]
    want = reference.attention_bwd(dout, q, k, v, dlse=dlse, **options)[4]
    require(got, want, 2.0**-10, least=1)


def large_scores(backend: EmuBackend) -> None:
    """Of some rows in the lower half of a segment all keys have one score, up to 1.2e7 in units of log2."""
    q, k, v, dout, _ = _operands("bfloat16", _ONE_STAGE)
    rng = np.random.default_rng(5)
    sizes = 2.0**23 * rng.uniform(0.5, 1, (4, 45)) * rng.choice([-1, 1], (4, 45))
    rows = np.isin(np.arange(45), [25, 27, 28, 30])
    q[:, rows], k[..., 0] = 0, 1
    q[:, rows, 0] = sizes[:, rows].astype(q.dtype)
    _, residuals = backend.api.attention_fwd(q, k, v, scale=1.0)
    expected = reference.attention_bwd(dout, q, k, v, scale=1.0)
    coarse = naive_bwd(dout, q, k, v, q.dtype, scale=1.0)
    for deterministic in (False, True):
        grads = backend.api.attention_bwd(dout, residuals, deterministic=deterministic)
        _require_right(grads, expected, coarse, 77, "highest")


def far_scores(backend: EmuBackend) -> None:
    """What the forward rounded another way has no gradients in float16, and says so."""
    q, k, v, dout, _ = _operands("float16", _ONE_STAGE)
    q[..., 0], k[..., 0] = 60000, 4000
    _, residuals = backend.api.attention_fwd(q, k, v, scale=1.0)
    dv = backend.api.attention_bwd(dout, residuals, wrt=("v",)).dv
    assert np.isnan(dv).all(), f"{np.isfinite(dv).sum()} numbers, want none"


def one_key(backend: EmuBackend) -> None:
    """The weight of a row's only key is 1 where the backward's score is the forward's to the last bit.

    High parts of products cancel: scores are what the small ones leave, a thousand and more in units of log2.
    """
    rng = np.random.default_rng(0)
    high, low = rng.integers(512, 1024, (1, 32, 32)) / 1024, rng.uniform(0, 2.0**-13, (1, 32, 64))
    half = rng.standard_normal((1, 1, 32))
    q = (np.concatenate([high, high], -1) + low).astype(np.float32)
    k = np.concatenate([half, -half], -1).astype(np.float32)
    v, dout = rng.uniform(0.5, 1, (1, 1, 32)).astype(np.float32), np.ones((1, 32, 32), np.float32)
    _, residuals = backend.api.attention_fwd(q, k, v, scale=4e6 * LN2)
    got = backend.api.attention_bwd(dout, residuals, wrt=("v",))[2]
    require(got, np.full(got.shape, 32.0))


MMA_BACKWARD: dict[str, Probe] = {
    "mma backward": gradients(causal=True),
    "mma backward of two stages": gradients(sizes=_TWO_STAGES),
    "mma backward, deterministic": gradients(sizes=_FEW_KEYS, ways=(True,), causal=True),
    "mma backward of keys without queries": gradients(sizes=_FEW_QUERIES, causal="top-left"),
    "mma backward of lengths": gradients(
        sizes=_LENGTHS, ways=(False, True), q_lengths=np.array([45, 1, 32]), kv_lengths=np.array([77, 32, 40])
    ),
    "mma backward of queries that there are not": queries_that_there_are_not,
    "mma backward of odd columns": gradients(sizes=_ODD),
    "mma backward of odd rows": gradients(layout=LAYOUTS["odd rows"]),
    "mma backward of bfloat16": gradients("bfloat16"),
    "mma backward of tf32": gradients("tf32", causal=True),
    "mma backward of tf32 operands": tf32_operands,
    "mma backward of float32": gradients("float32", _TWO_STAGES),
    "mma backward of one key": one_key,
    "mma backward of large scores": large_scores,
    "mma backward of large scores, from lse": gradients(
        sizes=_ONE_STAGE, from_lse=True, sinks=np.full(4, 1000, np.float32), bias=np.full((45, 1), 1000, np.float16)
    ),
    "mma backward of far scores": far_scores,
    "mma backward of a mask": gradients(mask=_MASK),
    "mma backward of a sparse mask": gradients(mask=_SPARSE),
    "mma backward of features": gradients(dropout=0.3, seed=5, softcap=1.5),
    "mma backward of lists": gradients(block_mask=block_mask(_ONE_STAGE, (32, 16))),
    "mma backward of lists of two stages": gradients(
        sizes=_LISTED, ways=(False, True), block_mask=block_mask(_LISTED, (16, 16))
    ),
    "mma backward of heads together": gradients(
        sizes=_TOGETHER,
        ways=(True,),
        from_lse=True,
        block_mask=block_mask(_TOGETHER, (16, 16)),
        alibi_slopes=np.array([0.5, 0.25, 0.125, 0]),
        sinks=np.array([0.5, -1, 2, 0], np.float32),
        dropout=0.3,
        seed=5,
    ),
    "mma backward of what a mask hides": hidden(_ONE_STAGE, _UNSEEN, _BLIND, mask=_HIDES),
    "mma backward of what lists hide": hidden(
        _ONE_STAGE, _UNSEEN, _BLIND, block_mask=fc.BlockMask.from_dense(_HIDES.copy(), block_size=32)
    ),
    "mma backward beyond the band": hidden(_ONE_STAGE, np.arange(77) >= 45, np.zeros(45, np.bool_), causal="top-left"),
    "mma backward before the band": hidden(_ONE_STAGE, np.arange(77) < 12, np.zeros(45, np.bool_), window=(20, 0)),
    "mma backward of queries beyond the band": hidden(
        _FEW_KEYS, np.zeros(33, np.bool_), np.arange(90) < 57, causal=True
    ),
    "mma backward of keys that there are not": keys_that_there_are_not,
    "mma backward of packed sequences": packed,
    "mma backward of a bias": gradients(bias=_RNG.standard_normal((4, 45, 77)).astype(np.float16)),
    "mma backward of a shared bias": gradients(sizes=_SHARED, bias=_RNG.standard_normal((1, 77)).astype(np.float16)),
    "mma backward of a bias of rows": gradients(bias=_RNG.standard_normal((4, 45, 1)).astype(np.float16)),
    "mma backward of sinks": gradients(sinks=np.array([0.5, -1, 2, 0], np.float32)),
    "mma backward of a huge sink": huge_sink,
    "mma backward of sinks, from lse": gradients(
        sizes=_TWO_STAGES, from_lse=True, sinks=np.array([0.5, -1, 2, 0], np.float32), causal=True
    ),
    "mma backward of sinks and a mask, from lse": gradients(
        from_lse=True, sinks=np.array([0.5, -1, 2, 0], np.float32), mask=_SPARSE
    ),
}
