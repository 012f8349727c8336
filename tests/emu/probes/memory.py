"""Probes of what is read and written: where, by which address, and what may not leak."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from backends import EmuBackend
from cases import Sizes

import flashcupy as fc
from emu.arrays import EmuArray
from emu.probes.agree import Probe, agree, problem


def hidden(how: str, poison: float, **options: Any) -> Probe:
    """Keys that no query sees hold NaN or inf, and change no bit."""

    def run(backend: EmuBackend) -> None:
        p = problem((), Sizes(batch=(2,), q_heads=2, kv_heads=2, q_len=40, kv_len=40, head_dim=8, v_dim=8), {})
        visible = np.ones((40, 40), np.bool_)
        visible[:, 24:] = False
        given = {"mask": visible, "bias": np.where(visible, 0.0, -np.inf), "kv_lengths": 24}
        p.options |= {how: given[how], **options}
        agree(backend, p)
        p.k[..., 24:, :], p.v[..., 24:, :] = poison, poison
        out, residuals = backend.api.attention_fwd(p.q, p.k, p.v, **p.options)
        grads = backend.api.attention_bwd(p.dout, residuals, dlse=p.dlse)
        assert all(np.isfinite(x).all() for x in (out, residuals.lse, *grads[:3])), "what is hidden leaks"

    return run


def rows_that_see_nothing(backend: EmuBackend) -> None:
    mask = np.ones((40, 70), np.bool_)
    mask[3] = mask[17:21] = False
    mask[:16, :40] = False
    sizes = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=40, kv_len=70, head_dim=4, v_dim=4)
    agree(backend, problem(("sinks",), sizes, {"mask": mask}))


def rows_that_see_one_key(backend: EmuBackend) -> None:
    sizes = Sizes(batch=(), q_heads=2, kv_heads=2, q_len=40, kv_len=40, head_dim=4, v_dim=4)
    agree(backend, problem(("sinks",), sizes, {"mask": np.eye(40, dtype=np.bool_)}))


def _framed(device: Any, like: Any) -> tuple[Any, Any]:
    """An array inside a larger one: (the larger, the inner)."""
    whole = device.from_host(np.full([n + 6 for n in like.shape], 7.0))
    return whole, whole[tuple(slice(2, 2 + n) for n in like.shape)]


def frames(backend: EmuBackend) -> None:
    """Results in the middle of larger arrays: nothing around them is written, nothing in them is left out."""
    p = problem(("sinks", "row_bias"), Sizes(batch=(), head_dim=20), {})
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


def _unaligned(x: np.ndarray) -> np.ndarray:
    view = np.zeros(x.nbytes + 1, np.uint8)[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def any_address(backend: EmuBackend) -> None:
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


def far_apart(backend: EmuBackend) -> None:
    """Two rows over two gigabytes apart, in memory that is hardly touched."""
    device, apart = backend.device, (1 << 31) + 64
    memory = np.frombuffer(mmap.mmap(-1, apart + 64, flags=mmap.MAP_PRIVATE), np.uint8)
    host = np.ndarray((1, 2, 4), np.float32, memory, 0, (2 * apart, apart, 4))
    host[...] = np.random.default_rng(0).standard_normal(host.shape)
    far, near = EmuArray(host, device), device.from_host(host)
    assert np.array_equal(fc.attention(far, far, far).get(), fc.attention(near, near, near).get()), "other bits"


def many_elements(backend: EmuBackend) -> None:
    """More elements than a grid of an elementwise kernel has threads: all rows but four lie in no sequence."""
    device = backend.device
    q, k = device.from_host(np.ones((1, 70_000, 8), np.float32)), device.from_host(np.ones((1, 4, 8), np.float32))
    out = device.from_host(np.full(q.shape, np.nan, np.float32))
    ends = np.array([0, 4])
    with device.using(detect_races=False):
        fc.attention_varlen(q, k, k, ends, ends, out=out)
    assert (out.get()[:, :4] == 1).all(), "the sequence is wrong"
    assert not out.get()[:, 4:].any(), "rows in no sequence are not zero"
