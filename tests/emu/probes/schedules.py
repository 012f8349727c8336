"""Probes with block lists and packed sequences."""

from __future__ import annotations

from typing import Any

import numpy as np
from backends import EmuBackend
from cases import Sizes
from naive import assert_close

import flashcupy as fc
from emu.probes.agree import EVEN, Probe, agree, problem
from flashcupy import reference


def block_mask(sizes: Sizes, block_size: tuple[int, int], batch: int = 1) -> fc.BlockMask:
    """FULL blocks, empty ones, and PARTIAL ones of many patterns; another list for each row, head and batch entry."""
    rng = np.random.default_rng(1)
    rows, columns = -(-sizes.q_len // block_size[0]), -(-sizes.kv_len // block_size[1])
    kinds = rng.integers(0, 3, (batch, sizes.kv_heads, rows, columns))
    kinds = kinds.repeat(block_size[0], -2).repeat(block_size[1], -1)[..., : sizes.q_len, : sizes.kv_len]
    return fc.BlockMask.from_dense(
        (kinds == 1) | ((kinds == 2) & (rng.random(kinds.shape) < 0.5)), block_size=block_size
    )


def lists(
    block_size: tuple[int, int],
    *features: str,
    sizes: Sizes,
    batch: int = 1,
    wrt: tuple[str, ...] | None = None,
    **options: Any,
) -> Probe:
    def run(backend: EmuBackend) -> None:
        mask = {"block_mask": block_mask(sizes, block_size, batch)}
        agree(backend, problem(features, sizes, mask | options), wrt=wrt)

    return run


def full_lists(backend: EmuBackend) -> None:
    """FULL blocks everywhere, cut on one side only."""
    mask = fc.BlockMask.from_blocks(np.ones((4, 4), np.bool_), (64, 64), block_size=16)
    for window in ((None, 3), (20, None)):
        agree(backend, problem((), EVEN, {"block_mask": mask, "window": window}))


_CU_Q, _CU_K = np.array([0, 20, 20, 21, 45, 52], np.int32), np.array([0, 33, 41, 41, 60, 95])


def packed(**options: Any) -> Probe:
    """Sequences of any length, none too, and rows in no sequence behind them."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(0)
        q, k, v, dout = (rng.standard_normal(s) for s in ((4, 55, 8), (2, 97, 8), (2, 97, 6), (4, 55, 6)))
        args = (q, k, v, _CU_Q, _CU_K)
        longest = {"max_seqlen_q": 24, "max_seqlen_k": 35, **options}
        out, residuals = backend.api.attention_varlen_fwd(*args, **longest)
        for got, want in zip((out, residuals.lse), reference.attention_varlen(*args, **longest), strict=True):
            assert_close(got, want, None, num_keys=35)
        wrt = ("q", "k", "v", *(("sinks",) if "sinks" in options else ()))
        dlse = rng.standard_normal(residuals.lse.shape)
        grads = backend.api.attention_varlen_bwd(dout, residuals, wrt=wrt, dlse=dlse)
        expected = reference.attention_varlen_bwd(dout, *args, **longest, dlse=dlse)
        for name, got, want in zip(("q", "k", "v", "bias", "sinks"), grads, expected, strict=True):
            if name in wrt:
                assert_close(got, want, None, grad=True, num_keys=35)

    return run


def wild_packing(backend: EmuBackend) -> None:
    """Device memory may say anything: no row outside the arrays is touched. Sequences that overlap do race."""
    q = backend.device.from_host(np.random.default_rng(0).standard_normal((2, 60, 8)))
    bias = backend.device.from_host(np.random.default_rng(1).standard_normal((3, 2, 25, 25)))
    for cu in ([-7, 5, 10**6, 3], [50, 90, 20, 60], [60, 40, 20, 0]):
        own = backend.device.from_host(np.array(cu, np.int32))
        with backend.device.using(detect_races=False):
            fc.attention_varlen(q, q, q, own, own, max_seqlen_q=25, max_seqlen_k=25, bias=bias)


def wild_lengths(backend: EmuBackend) -> None:
    q = backend.device.from_host(np.random.default_rng(0).standard_normal((4, 2, 40, 8)))
    for lengths in ([-5, 3, 0, 17], [10**9, -(10**9), 2**40, 41]):
        own = backend.device.from_host(np.array(lengths))
        out = fc.attention(q, q, q, q_lengths=own, kv_lengths=own, causal=True)
        clamped = np.clip(lengths, 0, 40)
        expected = fc.attention(q, q, q, q_lengths=clamped, kv_lengths=clamped, causal=True)
        assert np.array_equal(out.get(), expected.get())
