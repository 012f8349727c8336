"""The small problems that elementwise kernels are checked on: calls that need one of them, and else what is ready.

Results go to memory full of nan where the call lets them, and what is written twice differs: what a pool hands out may
hold the right answer of earlier work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

import flashcupy
from flashcupy import bound, reference
from flashcupy.cuda import families
from flashcupy.cuda.config import PlainConfig
from flashcupy.cuda.device import Device
from flashcupy.cuda.first_use import Results, complaint_of
from flashcupy.results import AttentionGrads

_BATCH, _Q_LEN, _KV_LEN, _DIM, _V_DIM = 152, 5, 9, 8, 6  # more words of lengths than an upload block has threads
_HEADS = 2
_SINKS = np.array([0.5, -0.5], np.float32)

Elementwise = Literal["fill", "upload", "sum_batch", "combine"]
Launch = Callable[[], Results]
Expect = Callable[[reference.Arithmetic], Results]


@dataclass(frozen=True, slots=True)
class PlainCase:
    """A problem that needs one elementwise kernel, and tile kernels that get ready, checks and all, before it."""

    function: Elementwise
    acc: Literal["float", "double"]

    @property
    def name(self) -> str:
        return f"{self.function}-{self.dtype}"

    @property
    def dtype(self) -> str:
        return "float64" if self.acc == "double" else "float32"

    def run(self, device: Device) -> str | None:
        """Compute it on the device; None if the result is right, or what is wrong."""
        return self.begin(device)()

    def begin(self, device: Device) -> Callable[[], str | None]:
        """Do all that comes before the launches to check: the oracle, the copies, and what gets other kernels ready."""
        launch, expect = self._prepare(device)
        expected, naive = expect(reference.FLOAT64), expect(bound.coarse(self.dtype))

        def finish() -> str | None:
            with families.only("generic"):  # which serves every dtype
                return complaint_of(self.name, device, launch(), expected, naive)

        return finish

    def compute(self, device: Device) -> Results:
        """Launch it all, and look at nothing."""
        launch, _ = self._prepare(device)
        with families.only("generic"):
            return launch()

    def _prepare(self, device: Device) -> tuple[Launch, Expect]:
        prepare = {"fill": _fill, "upload": _upload, "sum_batch": _sum_batch, "combine": _combine}[self.function]
        with families.only("generic"):
            return prepare(device, np.dtype(self.dtype))


def plain_case(config: Any, acc: Literal["float", "double"]) -> PlainCase | None:
    """The case of an elementwise kernel; None for one that is checked with the tiles it goes with."""
    if isinstance(config, PlainConfig) and config.function in get_args(Elementwise):
        own = config.arguments[0] if config.arguments else acc
        return PlainCase(config.function, own)  # type: ignore[arg-type]
    return None


def _normal(dtype: np.dtype, *shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) + 0.25).astype(dtype)


def _nan(device: Device, dtype: np.dtype, *shape: int) -> Any:
    return device.from_host(np.full(shape, np.nan, dtype))


def _fill(device: Device, dtype: np.dtype) -> tuple[Launch, Expect]:
    """Packed rows of which the first sequences use a part: the rest is filled, lse with the sinks."""
    rows, longest = 150, 7
    q, k, v = _normal(dtype, _HEADS, rows, _DIM), _normal(dtype, 1, rows, _DIM), _normal(dtype, 1, rows, _V_DIM)
    cu = np.array([0, 7, 12], np.int32)
    own = device.from_host(q), device.from_host(k), device.from_host(v)
    starts, sinks = device.from_host(cu), device.from_host(_SINKS.astype(dtype))
    flashcupy.attention(*own)

    def launch() -> Results:
        out, lse = _nan(device, dtype, _HEADS, rows, _V_DIM), _nan(device, dtype, _HEADS, rows)
        flashcupy.attention_varlen_fwd(
            *own, starts, starts, max_seqlen_q=longest, max_seqlen_k=longest, sinks=sinks, out=out, lse_out=lse
        )
        return {"out": out, "lse": lse}

    def expect(arithmetic: reference.Arithmetic) -> Results:
        results = reference.attention_varlen(q, k, v, cu, cu, sinks=_SINKS, arithmetic=arithmetic)
        return dict(zip(("out", "lse"), results, strict=True))

    return launch, expect


def _upload(device: Device, dtype: np.dtype) -> tuple[Launch, Expect]:
    """Lengths on the host, and then others."""
    q, k = _normal(dtype, _BATCH, 1, _Q_LEN, _DIM), _normal(dtype, _BATCH, 1, _KV_LEN, _DIM)
    v = _normal(dtype, _BATCH, 1, _KV_LEN, _V_DIM)
    up = np.arange(_BATCH) % (_KV_LEN + 1)
    lengths = {"out": up, "out of other lengths": _KV_LEN - up}
    own = [device.from_host(x) for x in (q, k, v)]
    flashcupy.attention(*own)

    def launch() -> Results:
        return {name: flashcupy.attention(*own, kv_lengths=used) for name, used in lengths.items()}

    def expect(arithmetic: reference.Arithmetic) -> Results:
        return {
            name: reference.attention(q, k, v, kv_lengths=used, arithmetic=arithmetic)[0]
            for name, used in lengths.items()
        }

    return launch, expect


def _sum_batch(device: Device, dtype: np.dtype) -> tuple[Launch, Expect]:
    """Gradients of a k and a v that all batch entries share."""
    q, dout = _normal(dtype, 3, _HEADS, _Q_LEN, _DIM), _normal(dtype, 3, _HEADS, _Q_LEN, _V_DIM)
    k, v = _normal(dtype, 1, 30, _DIM), _normal(dtype, 1, 30, _V_DIM)
    own = [device.from_host(x) for x in (q, k, v)]
    upstream = device.from_host(dout)
    each = [device.from_host(np.repeat(x[None], 3, axis=0)) for x in (k, v)]
    flashcupy.attention_bwd(upstream, flashcupy.attention_fwd(own[0], *each)[1], wrt=("k", "v"))
    residuals = flashcupy.attention_fwd(*own)[1]

    def launch() -> Results:
        grads = AttentionGrads(dk=_nan(device, dtype, *k.shape), dv=_nan(device, dtype, *v.shape))
        flashcupy.attention_bwd(upstream, residuals, wrt=("k", "v"), out=grads)
        return {"dk": grads.dk, "dv": grads.dv}

    def expect(arithmetic: reference.Arithmetic) -> Results:
        return reference.attention_bwd(dout, q, k, v, arithmetic=arithmetic)._asdict()

    return launch, expect


def _combine(device: Device, dtype: np.dtype) -> tuple[Launch, Expect]:
    """Two parts of the keys, one of them hidden from the first row."""
    rows, keys, cut = 40, 30, 12
    q, k, v = _normal(dtype, _HEADS, rows, _DIM), _normal(dtype, 1, keys, _DIM), _normal(dtype, 1, keys, _V_DIM)
    mask = np.ones((rows, keys), np.bool_)
    mask[0, :cut] = False
    outs, lses = [], []
    for part in (slice(cut), slice(cut, keys)):
        out, lse = reference.attention(q, k[:, part], v[:, part], mask=mask[:, part])
        outs.append(device.from_host(out.astype(dtype)))
        lses.append(device.from_host(lse.astype(dtype)))
    PlainCase("upload", "double" if dtype == np.float64 else "float").compute(device)

    def launch() -> Results:
        out = _nan(device, dtype, _HEADS, rows, _V_DIM)
        return {"out": out, "lse": flashcupy.merge_attention(outs, lses, out=out)[1]}

    def expect(arithmetic: reference.Arithmetic) -> Results:
        return dict(zip(("out", "lse"), reference.attention(q, k, v, mask=mask, arithmetic=arithmetic), strict=True))

    return launch, expect
