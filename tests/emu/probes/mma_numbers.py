"""Probes of the tensor-core forward's arithmetic: each is built so that one mistake shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from backends import EmuBackend
from cases import DTYPES, NUMBERS

import flashcupy as fc
from emu.probes.agree import Probe
from emu.probes.mma_exact import LN2, ONE_STAGE, ONE_WARP, SCALE, SIZES, Array, Layout, require, require_right, whole
from flashcupy import reference
from flashcupy.bound import rounded_to_tf32
from flashcupy.cuda.config import use_tiles
from flashcupy.cuda.table_sm80 import Choice

_HALF_ULP = 2.0**-24  # of a float32 from 1 to 2


def rising(numbers: type[np.floating[Any]], **options: Any) -> Probe:
    """Scores that grow by 2^12 from tile to tile, that stay, and that fall, in rows of one warp.

    Where the upper eight rows of the first warp stay or fall, the lower eight grow.
    """

    def run(backend: EmuBackend) -> None:
        q, k, v = whole(SIZES, np.dtype(numbers))
        way = np.array([1, 0, -1])[np.arange(SIZES.q_len) % 3]
        way[:8] = np.minimum(way[:8], 0)
        steps = 12 * way[:, None] * (np.arange(SIZES.kv_len) // 32)
        with use_tiles(ONE_STAGE):
            require_right(backend, (q, k, v), scale=SCALE, bias=(steps * LN2).astype(np.float32), **options)

    return run


def far(backend: EmuBackend) -> None:
    """Scores beyond 2^27, where a reference's rounding is a large number."""
    _, _, v = whole(SIZES, np.dtype(np.float16))
    columns = np.eye(64, dtype=np.float32)
    q, k = ((size + 16 * np.arange(32)[:, None]) * columns[:32] for size in (20000, 30000))
    arrays = [np.broadcast_to(x, (len(v), *x.shape)).astype(np.float16) for x in (q, k)]
    with use_tiles(ONE_STAGE):
        out = backend.api.attention(*arrays, v[:, :32], scale=1.0)
    np.testing.assert_array_equal(out, v[:, :32])


def hidden(numbers: str, poison: float, columns: Array, **options: Any) -> Probe:
    """Keys that no query of a warp sees, `columns`, hold NaN or inf, and change no bit."""

    def run(backend: EmuBackend) -> None:
        q, k, v = whole(SIZES, DTYPES[NUMBERS[numbers]["dtype"]])
        own = {"precision": NUMBERS[numbers].get("precision", "highest"), "scale": SCALE, **options}
        with use_tiles(ONE_STAGE):
            require_right(backend, (q, k, v), **own)
            want = backend.api.attention(q, k, v, return_lse=True, **own)
            k[:, columns], v[:, columns] = poison, poison
            got = backend.api.attention(q, k, v, return_lse=True, **own)
        for one, other in zip(got, want, strict=True):
            assert np.isfinite(one).all(), "what is hidden leaks"
            assert np.array_equal(one, other), "what is hidden leaks"

    return run


def _positive(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).uniform(0.5, 1, shape).astype(np.float32)


def tf32_operands(layout: Layout) -> Probe:
    """Queries and keys, in lse, and values are rounded to nearest, not cut off: cutting off is 2^-11 too little."""

    def run(backend: EmuBackend) -> None:
        q, k, v = (layout(_positive(n, 2, 45, 40)) for n in range(3))
        with use_tiles(ONE_STAGE):
            lse = backend.api.attention(q, k, v, return_lse=True, precision="tf32")[1]
            require(lse, reference.attention(rounded_to_tf32(q), rounded_to_tf32(k), v)[1])
            exact_q, exact_k, _ = whole(SIZES, np.dtype(np.float32))
            v = layout(_positive(3, 2, 77, 40))
            out = backend.api.attention(exact_q, exact_k, v, scale=SCALE, precision="tf32")
            require(out, reference.attention(exact_q, exact_k, rounded_to_tf32(v), scale=SCALE)[0])

    return run


def tf32_weights(backend: EmuBackend) -> None:
    """A weight of (1 + 2^-10 - 2^-20) / 2: rounded it is 2^-21 too large, cut off 2^-11 too little."""
    weight = (1 + 2.0**-10 - 2.0**-20) / 2
    rest, q, k = math.log2(weight), np.ones((1, 16, 8), np.float32), np.zeros((1, 2, 8), np.float32)
    for part in range(3):  # the score, of which one TF32 number holds 11 bits
        k[0, 1, part] = rounded_to_tf32(np.array([rest]))[0]
        rest -= float(k[0, 1, part])
    v = np.broadcast_to(np.array([0, 1], np.float32)[:, None], (1, 2, 8)).copy()
    with use_tiles(ONE_STAGE):
        out = backend.api.attention(q, k, v, scale=LN2, precision="tf32")
    rounded = (1 + 2.0**-10) / 2
    require(out, np.full(out.shape, rounded / (1 + weight)))


def any_nan(precision: str) -> Probe:
    """Half a unit more would make a number of one, and an infinity of the other, whose bits are dropped."""

    def run(backend: EmuBackend) -> None:
        q, k, v = whole(SIZES, np.dtype(np.float32))
        v.view(np.uint32)[0, 5, 3], v.view(np.uint32)[0, 6, 20] = 0x7FFFFFFF, 0x7F800001
        with use_tiles(ONE_STAGE):
            require_right(backend, (q, k, v), scale=SCALE, precision=precision)

    return run


def all_bits(backend: EmuBackend) -> None:
    """Positive numbers of all bits in float32: what a product of three leaves out is 2^-12 of it."""
    q, k, v = _positive(0, 2, 45, 40), _positive(1, 2, 77, 40), _positive(2, 2, 77, 40)
    k[:, ::2] *= -1  # weights far apart
    with use_tiles(ONE_STAGE):
        require_right(backend, (q, k, v), scale=0.1)


def sums_round_to_nearest(backend: EmuBackend) -> None:
    """Thirty-one additions of 0.9 ulp to 1 are off by less than 31/2 ulps, unless they are cut off; seven by 7/2."""
    ulp, small = 2.0**-23, 0.90625 * 2.0**-23
    q, k, v = np.ones((1, 16, 256), np.float32), np.zeros((1, 64, 256), np.float32), np.zeros((1, 64, 32), np.float32)
    q[..., 8::8], k[..., 0], k[..., 8::8] = small, 1, 1
    v[:, 0], v[:, 8::8] = 1, small
    with use_tiles(Choice(16, 64, 1, 1, 1)):
        out, lse = backend.api.attention(q, k, v, scale=LN2, return_lse=True)
    require(lse, np.full(lse.shape, (1 + 31 * small + 6) * LN2), 15.5 * ulp / 7)
    require(out, np.full(out.shape, (1 + 7 * small) / 64), 3.5 * ulp)


def long_rows(backend: EmuBackend) -> None:
    """One large weight, then 64 tiles of 3/4 of half its ulp each; for the other query a larger one comes last."""
    score = np.full((66, 32), -200.0)
    score[0, 0], score[1:65, 3], score[1:65, 9], score[65, 1] = 0, -25, -26, -200
    q, k = np.zeros((2, 1, 32), np.float32), np.zeros((1, 66 * 32, 32), np.float32)
    q[:, 0, 0], q[1, 0, 1], k[0, :, 0], k[0, 65 * 32 + 1, 1] = 1, 1, score.ravel(), 216
    v = np.ones((1, 66 * 32, 32), np.float32)
    v[:, 1:, 1::2] = -1
    with use_tiles(ONE_WARP), backend.device.using(detect_races=False):
        out = backend.api.attention(q, k, v, scale=LN2)
    require(out, reference.attention(q, k, v, scale=LN2)[0], 3 * _HALF_ULP)


def equal_values(backend: EmuBackend) -> None:
    """Their mean is themselves: float32 divides as a division does. And lse is the float32 next to it."""
    q, k, v = whole(SIZES, np.dtype(np.float32))
    v[...] = np.arange(1, 41)
    with use_tiles(ONE_STAGE):
        out, lse = backend.api.attention(q, k, v, scale=SCALE, return_lse=True)
    assert np.array_equal(out, np.broadcast_to(v[0, 0], out.shape)), "the mean of equal values is another"
    want = reference.attention(q, k, v, scale=SCALE)[1]
    assert np.array_equal(lse, want.astype(np.float32)), "lse is not rounded once"


def infinite_values(backend: EmuBackend) -> None:
    q, k, v = whole(SIZES, np.dtype(np.float32))
    v[0, 5, 3] = np.inf
    with use_tiles(ONE_STAGE):
        require_right(backend, (q, k, v), scale=SCALE)


def softcap(backend: EmuBackend) -> None:
    """In lse, whose weights are not rounded."""
    q, k, v = whole(SIZES, np.dtype(np.float16))
    options = {"scale": 1.5, "softcap": 2.0}
    with use_tiles(ONE_STAGE):
        lse = backend.api.attention(q, k, v, return_lse=True, **options)[1]
    require(lse, reference.attention(q, k, v, **options)[1], least=1)


def statistics(backend: EmuBackend) -> None:
    """What the forward leaves to the backward, in the gradient of values: sums of positive numbers."""
    q, k, v = whole(SIZES, np.dtype(np.float16))
    dout = np.random.default_rng(5).integers(1, 9, (*q.shape[:2], v.shape[-1])).astype(np.float16)
    with use_tiles(ONE_STAGE):
        residuals = backend.api.attention_fwd(q, k, v, scale=SCALE)[1]
        got = backend.api.attention_bwd(dout, residuals, wrt=("v",))[2]
    require(got, reference.attention_bwd(dout, q, k, v, scale=SCALE)[2], 2.0**-12)


def packed(backend: EmuBackend) -> None:
    """Sequences that start anywhere, of no and of one row, and rows of no sequence."""
    cu_q, cu_k = np.array([1, 1, 2, 35, 36, 44]), np.array([3, 20, 20, 53, 54, 75])
    q, k, v = whole(SIZES, np.dtype(np.float16))
    options = {"max_seqlen_q": 33, "max_seqlen_k": 33, "scale": SCALE, "causal": True}
    with use_tiles(ONE_STAGE):
        got = backend.api.attention_varlen(q, k, v, cu_q, cu_k, return_lse=True, **options)
    want = reference.attention_varlen(q, k, v, cu_q, cu_k, **options)
    require(got[0], want[0])
    require(got[1], want[1], least=1)


def frames(backend: EmuBackend) -> None:
    """Results inside larger arrays, at pieces of 16 bytes and beside them: nothing around them is written."""
    operands = whole(SIZES, np.dtype(np.float16))
    want = reference.attention(*operands, scale=SCALE)[0]
    for first in (8, 9):
        frame = backend.device.from_host(np.full((4, 49, 64), 7, np.float16))
        inner = slice(None), slice(2, 47), slice(first, first + 40)
        with use_tiles(ONE_STAGE):
            fc.attention(*map(backend.device.from_host, operands), out=frame[inner], scale=SCALE)
        got = frame.get()
        require(got[inner], want)
        got[inner] = 7
        assert (got == 7).all(), "written outside the result"


def lists(blocks: fc.BlockMask, tiles: Choice, **options: Any) -> Probe:
    """Blocks of a list over rows and keys of `SIZES`."""

    def run(backend: EmuBackend) -> None:
        with use_tiles(tiles):
            require_right(backend, whole(SIZES, np.dtype(np.float16)), scale=SCALE, block_mask=blocks, **options)

    return run
