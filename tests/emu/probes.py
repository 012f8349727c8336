"""Small problems that catch faults in kernels. Those of float64 have a bound of their own: no luck of a naive computation.

A probe takes a backend and raises AssertionError or EmuError where something is wrong. Tiles are the small ones unless
it asks for others.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from backends import EmuBackend
from cases import Case, Problem, Sizes
from emu.arrays import EmuArray
from harness import check
from naive import assert_close

import flashcupy as fc
from flashcupy import reference
from flashcupy.cuda.config import use_tiles

Probe = Callable[[EmuBackend], None]

# Two chunks of depth and of result columns, each with a tail, and tails of rows and keys.
_SIZES = Sizes(head_dim=20)
# Tiles without a tail, so that some are FULL.
_EVEN = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=64, kv_len=64, head_dim=4, v_dim=4)


def _problem(features: tuple[str, ...], sizes: Sizes, options: dict[str, Any]) -> Problem:
    problem = Case(features, "float64", sizes).make()
    problem.options |= options
    if "sinks" in problem.options:
        problem.options["sinks"] = problem.options["sinks"].astype(np.float64)  # its gradient has the dtype that it has
    return problem


def _agree(backend: EmuBackend, p: Problem, *, backward: bool = True, wrt: tuple[str, ...] | None = None) -> None:
    """Out, lse and gradients within the bound of float64."""
    out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, **p.options)
    for got, want in zip((out, residuals.lse), reference.attention(p.q, p.k, p.v, **p.options), strict=True):
        assert_close(got, want, None, num_keys=p.k.shape[-2])
    if backward:
        _gradients_agree(backend, p, residuals, wrt or p.wrt)


def _gradients_agree(backend: EmuBackend, p: Problem, residuals: Any, wrt: tuple[str, ...]) -> None:
    grads = backend.api.attention_bwd(p.dout, residuals, wrt=wrt, dlse=p.dlse)
    expected = reference.attention_bwd(p.dout, p.q, p.k, p.v, dlse=p.dlse, **p.options)
    for name, got, want in zip(("q", "k", "v", "bias", "sinks"), grads, expected, strict=True):
        if name in wrt:
            assert_close(got, want, None, grad=True, num_keys=max(p.q.shape[-2], p.k.shape[-2]))


def _forward(*features: str, sizes: Sizes = _SIZES, **options: Any) -> Probe:
    return lambda backend: _agree(backend, _problem(features, sizes, options), backward=False)


def _both(*features: str, sizes: Sizes = _SIZES, wrt: tuple[str, ...] | None = None, **options: Any) -> Probe:
    return lambda backend: _agree(backend, _problem(features, sizes, options), wrt=wrt)


def _windows(*windows: tuple[int | None, int | None], **options: Any) -> Probe:
    def run(backend: EmuBackend) -> None:
        for window in windows:
            _agree(backend, _problem((), _EVEN, {"window": window, **options}))

    return run


def _in(dtype: str, *features: str, sizes: Sizes = _SIZES) -> Probe:
    """Every result within the bound that the naive computation sets."""
    return lambda backend: check(Case(features, dtype, sizes), backend, pooled_size=1 << 12)


# ---- block lists -----------------------------------------------------------------------------------------------------


def _block_mask(sizes: Sizes, block_size: tuple[int, int], batch: int = 1) -> fc.BlockMask:
    """FULL blocks, empty ones, and PARTIAL ones of many patterns; another list for each row, head and batch entry."""
    rng = np.random.default_rng(1)
    rows, columns = -(-sizes.q_len // block_size[0]), -(-sizes.kv_len // block_size[1])
    kinds = rng.integers(0, 3, (batch, sizes.kv_heads, rows, columns))
    kinds = kinds.repeat(block_size[0], -2).repeat(block_size[1], -1)[..., : sizes.q_len, : sizes.kv_len]
    return fc.BlockMask.from_dense((kinds == 1) | ((kinds == 2) & (rng.random(kinds.shape) < 0.5)), block_size=block_size)


def _lists(
    block_size: tuple[int, int], *features: str, sizes: Sizes, batch: int = 1, backward: bool = True, **options: Any
) -> Probe:
    def run(backend: EmuBackend) -> None:
        mask = {"block_mask": _block_mask(sizes, block_size, batch)}
        _agree(backend, _problem(features, sizes, mask | options), backward=backward)

    return run


# ---- packed sequences ------------------------------------------------------------------------------------------------

_CU_Q, _CU_K = np.array([0, 20, 20, 21, 45, 52], np.int32), np.array([0, 33, 41, 41, 60, 95])


def _packed(**options: Any) -> Probe:
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
        for got, want in zip(grads[: len(wrt)], (x for x in expected if x is not None), strict=False):
            if got is not None:
                assert_close(got, want, None, grad=True, num_keys=35)

    return run


def _wild_packing(backend: EmuBackend) -> None:
    """Device memory may say anything: no row outside the arrays is touched. Sequences that overlap do race."""
    q = backend.device.from_host(np.random.default_rng(0).standard_normal((2, 60, 8)))
    for cu in ([-7, 5, 10**6, 3], [0, 90, 20, 60], [60, 40, 20, 0]):
        own = backend.device.from_host(np.array(cu, np.int32))
        with backend.device.using(detect_races=False):
            fc.attention_varlen(q, q, q, own, own, max_seqlen_q=25, max_seqlen_k=25)


def _wild_lengths(backend: EmuBackend) -> None:
    q = backend.device.from_host(np.random.default_rng(0).standard_normal((2, 2, 40, 8)))
    for lengths in ([-5, 3], [10**9, -(10**9)], [2**40, 41]):
        own = backend.device.from_host(np.array(lengths))
        out = fc.attention(q, q, q, q_lengths=own, kv_lengths=own, causal=True)
        clamped = np.clip(lengths, 0, 40)
        expected = fc.attention(q, q, q, q_lengths=clamped, kv_lengths=clamped, causal=True)
        assert np.array_equal(out.get(), expected.get())


# ---- what may not leak, and what may not be written ------------------------------------------------------------------


def _hidden(how: str, poison: float, **options: Any) -> Probe:
    """Keys that no query sees hold NaN or inf, and change no bit."""

    def run(backend: EmuBackend) -> None:
        p = _problem((), Sizes(batch=(2,), q_heads=2, kv_heads=2, q_len=40, kv_len=40, head_dim=8, v_dim=8), {})
        visible = np.ones((40, 40), np.bool_)
        visible[:, 24:] = False
        given = {"mask": visible, "bias": np.where(visible, 0.0, -np.inf), "kv_lengths": 24}
        p.options |= {how: given[how], **options}
        _agree(backend, p)
        p.k[..., 24:, :], p.v[..., 24:, :] = poison, poison
        out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, **p.options)
        grads = backend.api.attention_bwd(p.dout, residuals, dlse=p.dlse)
        assert all(np.isfinite(x).all() for x in (out, residuals.lse, *grads[:3])), "what is hidden leaks"

    return run


def _rows_that_see_nothing(backend: EmuBackend) -> None:
    mask = np.ones((40, 70), np.bool_)
    mask[3] = mask[17:21] = False
    mask[:16, :40] = False
    sizes = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=40, kv_len=70, head_dim=4, v_dim=4)
    _agree(backend, _problem(("sinks",), sizes, {"mask": mask}))


def _rows_that_see_one_key(backend: EmuBackend) -> None:
    sizes = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=40, kv_len=40, head_dim=4, v_dim=4)
    _agree(backend, _problem(("sinks",), sizes, {"mask": np.eye(40, dtype=np.bool_)}))


def _framed(device: Any, like: Any) -> tuple[Any, Any]:
    """An array inside a larger one: (the larger, the inner)."""
    whole = device.from_host(np.full([n + 6 for n in like.shape], 7.0))
    return whole, whole[tuple(slice(2, 2 + n) for n in like.shape)]


def _frames(backend: EmuBackend) -> None:
    """Results in the middle of larger arrays: nothing around them is written, nothing in them is left out."""
    p = _problem(("sinks", "row_bias"), Sizes(batch=(), head_dim=20), {})
    q, k, v, dout, bias = (backend.device.from_host(x) for x in (p.q, p.k, p.v, p.dout, p.options["bias"]))
    own = {"sinks": p.options["sinks"], "bias": bias}
    frames = {}
    for name, like in zip(("dq", "dk", "dv", "dbias", "out", "lse"), (q, k, v, bias, dout, p.dlse), strict=True):
        frames[name] = _framed(backend.device, like)
    inner = {name: part for name, (_, part) in frames.items()}
    fc.attention_fwd(q, k, v, out=inner["out"], lse_out=inner["lse"], **own)
    out, residuals = fc.attention_fwd(q, k, v, **own)
    grads = fc.AttentionGrads(*(inner[name] for name in ("dq", "dk", "dv", "dbias")))
    fc.attention_bwd(dout, residuals, wrt=("q", "k", "v", "bias"), out=grads)
    expected = fc.attention_bwd(dout, residuals, wrt=("q", "k", "v", "bias"))
    for (whole, part), want in zip(frames.values(), (*expected[:4], out, residuals.lse), strict=True):
        assert np.array_equal(part.get(), want.get()), "another place, other bits"
        part._host[...] = 7.0
        assert (whole.get() == 7.0).all(), "written outside the result"


# ---- memory ----------------------------------------------------------------------------------------------------------


def _unaligned(x: np.ndarray) -> np.ndarray:
    view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def _any_address(backend: EmuBackend) -> None:
    """Operands and results at odd addresses: the same bits."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 33, 8)).astype(np.float16) for _ in range(3))
    plain, residuals = backend.api.attention_fwd(q, k, v)
    out = _unaligned(np.zeros_like(q))
    backend.api.attention(*map(_unaligned, (q, k, v)), out=out)
    assert np.array_equal(out, plain), "unaligned, other bits"
    dq = _unaligned(np.zeros_like(q))
    backend.api.attention_bwd(_unaligned(plain), residuals, out=fc.AttentionGrads(dq=dq))
    assert np.array_equal(dq, backend.api.attention_bwd(plain, residuals)[0]), "unaligned, other bits"


def _broadcast(**options: Any) -> Probe:
    """Two batch dims that cannot be merged, each operand broadcast in another way."""

    def run(backend: EmuBackend) -> None:
        rng = np.random.default_rng(0)
        shapes = (3, 1, 4, 20, 6), (2, 2, 40, 6), (3, 2, 2, 40, 4), (3, 2, 4, 20, 4)
        q, k, v, dout = (rng.standard_normal(shape) for shape in shapes)
        _agree(backend, Problem(q, k, v, dout, rng.standard_normal(dout.shape[:-1]), options))

    return run


def _bias_of(*shape: int) -> Probe:
    return _broadcast(bias=np.random.default_rng(2).standard_normal(shape), causal=True)


def _far_apart(backend: EmuBackend) -> None:
    """Two rows over two gigabytes apart, in memory that is hardly touched."""
    device, apart = backend.device, (1 << 31) + 64
    memory = np.frombuffer(mmap.mmap(-1, apart + 64, flags=mmap.MAP_PRIVATE), np.uint8)
    host = np.ndarray((1, 2, 4), np.float32, memory, 0, (2 * apart, apart, 4))
    host[...] = np.random.default_rng(0).standard_normal(host.shape)
    far, near = EmuArray(host, device), device.from_host(host)
    assert np.array_equal(fc.attention(far, far, far).get(), fc.attention(near, near, near).get()), "other bits"


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _long_rows(backend: EmuBackend) -> None:
    """Sums over 16384 keys, out of few rows: the tiles are real, and races are for others to find."""
    sizes = Sizes(batch=(), q_heads=1, kv_heads=1, q_len=16, kv_len=16384, head_dim=16, v_dim=64)
    with use_tiles("real"), backend.device.using(detect_races=False):
        check(Case((), "float32", sizes), backend, pooled_size=1)


def _growing(backend: EmuBackend) -> None:
    """Each key outweighs all earlier ones: the running reference moves with every tile."""
    rng = np.random.default_rng(0)
    q, v = np.abs(rng.standard_normal((2, 40, 8))), rng.standard_normal((2, 150, 9))
    k = np.broadcast_to(np.linspace(0, 30, 150)[:, None], (2, 150, 8))
    results = backend.api.attention(q, k, v, return_lse=True)
    for got, want in zip(results, reference.attention(q, k, v), strict=True):
        assert_close(got, want, None, num_keys=150)


def _dropout_of_everything(backend: EmuBackend) -> None:
    with pytest.warns(UserWarning, match="drops everything"):
        _agree(backend, _problem((), _SIZES, {"dropout": 0.999, "seed": 1}))


def _from_lse(backend: EmuBackend) -> None:
    """A backward without the forward's statistics."""
    mask = np.ones((45, 77), np.bool_)
    mask[3] = False
    p = _problem((), _SIZES, {"mask": mask})
    out, lse = reference.attention(p.q, p.k, p.v, mask=mask)
    residuals = backend.api.AttentionResiduals.from_arrays(p.q, p.k, p.v, out, lse, mask=mask)
    _gradients_agree(backend, p, residuals, p.wrt)


def _merge(backend: EmuBackend) -> None:
    rng = np.random.default_rng(0)
    outs, lses = list(rng.standard_normal((3, 2, 9, 5))), list(rng.standard_normal((3, 2, 9)))
    lses[1][:, 2:5], outs[1][:, 2:5] = -np.inf, np.nan
    for lse in lses:
        lse[:, 7] = -np.inf
    weights = np.exp(np.array(lses))
    total = weights.sum(axis=0)
    parts = np.where(weights[..., None] > 0, weights[..., None] * np.array(outs), 0.0).sum(axis=0)
    with np.errstate(divide="ignore"):
        merged, lse = backend.api.merge_attention(outs, lses)
        assert_close(merged, parts / np.where(total == 0, 1, total)[..., None], None)
        assert_close(lse, np.log(total), None)


def _real_tiles(dtype: str, *features: str) -> Probe:
    """More than one tile of either side, more than one group of columns."""
    sizes = Sizes(batch=(), q_heads=2, kv_heads=1, q_len=70, kv_len=100, head_dim=40, v_dim=72)

    def run(backend: EmuBackend) -> None:
        with use_tiles("real"):
            if dtype == "float64":
                _agree(backend, _problem(features, sizes, {}))
            else:
                check(Case(features, dtype, sizes), backend, pooled_size=1)

    return run


_WIDE_BLOCKS = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=100, kv_len=130, head_dim=4, v_dim=4)
_TWO_BATCHES = Sizes(batch=(2,), q_heads=4, kv_heads=2, q_len=45, kv_len=77, head_dim=4, v_dim=4)

_LARGE_OFFSET = (0x123456789ABCDEF0, 0x0FEDCBA987654321)

PROBES: dict[str, Probe] = {
    "forward": _forward(),
    "backward": _both(),
    "dk alone": _both(wrt=("k",)),
    "real tiles": _real_tiles("float64"),
    "float16": _in("float16"),
    "bfloat16": _in("bfloat16"),
    "causal": _both("causal"),
    "top left": _both("top_left"),
    "window": _both("window"),
    "edges": _windows((1, 0), (0, 1), (14, None), (None, 14)),
    "bias edges": _windows((1, 1), (14, None), bias=np.random.default_rng(3).standard_normal((64, 64))),
    "lengths": _both("causal", "q_lengths", "kv_lengths", "sinks"),
    "lengths in full tiles": _both(sizes=_EVEN, q_lengths=33, kv_lengths=40, sinks=np.ones(2)),
    "scale": _both("scale"),
    "softcap": _both("softcap"),
    "alibi": _both("alibi", "causal"),
    "mask": _both("mask"),
    "bias": _both("bias"),
    "dropout": _both("dropout", seed=_LARGE_OFFSET),
    "dropout of everything": _dropout_of_everything,
    "sinks": _both(sinks=np.array([9.0, -9.0, 3.0, 0.0])),
    "rows that see nothing": _rows_that_see_nothing,
    "rows that see one key": _rows_that_see_one_key,
    "lists": _lists((32, 64), sizes=_WIDE_BLOCKS, batch=2),
    "lists of small blocks": _lists((16, 16), sizes=_TWO_BATCHES),
    "lists in a band": _lists((16, 16), sizes=_TWO_BATCHES, window=(20, 3)),
    "lists and bias": _lists((16, 64), "bias", sizes=_WIDE_BLOCKS),
    "packed": _packed(causal=True, sinks=np.ones(4)),
    "wild packing": _wild_packing,
    "wild lengths": _wild_lengths,
    "hidden by mask": _hidden("mask", np.nan),
    "hidden by mask, inf": _hidden("mask", np.inf),
    "hidden by bias": _hidden("bias", np.nan),
    "hidden by mask, softcap": _hidden("mask", np.nan, softcap=2.0),
    "frames": _frames,
    "any address": _any_address,
    "broadcast": _broadcast(),
    "bias of batch entries": _bias_of(3, 1, 4, 20, 40),
    "bias of keys": _bias_of(2, 1, 1, 40),
    "bias of rows": _bias_of(4, 20, 1),
    "bias of everything": _bias_of(1),
    "far apart": _far_apart,
    "long rows": _long_rows,
    "growing scores": _growing,
    "from lse": _from_lse,
    "merge": _merge,
}
