"""The small problem that a kernel new on a GPU is checked on, against the oracle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import flashcupy
from flashcupy import arrays, bound, reference
from flashcupy.block_mask import BlockMask
from flashcupy.cuda.config import features
from flashcupy.cuda.device import Device
from flashcupy.results import AttentionGrads
from flashcupy.spec import AttentionSpec

_Q_HEADS, _KV_HEADS = 2, 1
# Rows that end inside a tile of any size, more than one tile of each, more keys than queries.
_Q_LEN, _KV_LEN = 150, 203
# The contract's bound compares largest errors, which in a problem this small are partly luck. A wrong kernel is off by
# far more than this.
_SLACK = 4


@dataclass(frozen=True, slots=True)
class Case:
    """A problem that makes use of everything a configuration compiles in."""

    dtype: str
    head_dim: int
    v_dim: int
    features: tuple[str, ...] = ()
    block_size: tuple[int, int] | None = None
    backward: bool = False

    @property
    def name(self) -> str:
        parts = [self.dtype, f"d{self.head_dim}", f"v{self.v_dim}", "bwd" if self.backward else "fwd", *self.features]
        if self.block_size is not None:
            parts.append("blocks{}x{}".format(*self.block_size))
        return "-".join(parts)

    def run(self, device: Device) -> str | None:
        """Compute it on the device; None if the result is right, or what is wrong."""
        dtype = arrays.bfloat16() if self.dtype == "bfloat16" else np.dtype(self.dtype)
        rng = np.random.default_rng(0)
        shapes = (
            (_Q_HEADS, _Q_LEN, self.head_dim),
            (_KV_HEADS, _KV_LEN, self.head_dim),
            (_KV_HEADS, _KV_LEN, self.v_dim),
        )
        host = [(rng.standard_normal(shape) + 0.25).astype(dtype) for shape in shapes]
        host.append((rng.standard_normal((_Q_HEADS, _Q_LEN, self.v_dim)) + 0.25).astype(dtype))
        options = self._options(rng)
        got = self._compute(device, host, options)
        expected = self._expect(host, options, reference.FLOAT64)
        naive = self._expect(host, options, bound.coarse(dtype))
        for name, own in got.items():
            if complaint := _compare(own, expected[name], naive[name], grad=name.startswith("d")):
                return f"{name} of {self.name}: {complaint}"
        return None

    def _options(self, rng: np.random.Generator) -> dict[str, Any]:
        scores = (_Q_HEADS, _Q_LEN, _KV_LEN)
        every: dict[str, Any] = {
            "softcap": {"softcap": 3.0},
            "bias": {"bias": rng.standard_normal(scores).astype(np.float32)},
            "alibi": {"alibi_slopes": np.array([0.25, 0.0625], np.float32)},
            "mask": {"mask": rng.random(scores) < 0.7},
            "dropout": {"dropout": 0.25, "seed": (1, 2)},
        }
        options: dict[str, Any] = {"causal": True, "sinks": np.array([0.5, -0.5], np.float32)}
        for name in self.features:
            options |= every[name]
        if self.block_size is not None:
            size = (min(self.block_size[0], 128), min(self.block_size[1], 128))
            options["block_mask"] = BlockMask.from_dense(_pattern(rng, size), block_size=size)
        return options

    def _compute(self, device: Device, host: list[np.ndarray], options: dict[str, Any]) -> dict[str, np.ndarray]:
        q, k, v, dout = (device.from_host(x) for x in host)
        own = {name: device.from_host(x) if name in ("mask", "bias") else x for name, x in options.items()}
        out, residuals = flashcupy.attention_fwd(q, k, v, **own)
        results = {"out": out, "lse": residuals.lse}
        if self.backward:
            wrt = ("q", "k", "v", *(name for name in ("bias", "sinks") if name in options))
            results |= _present(flashcupy.attention_bwd(dout, residuals, wrt=wrt))
        return {name: device.to_host(x) for name, x in results.items()}

    def _expect(
        self, host: list[np.ndarray], options: dict[str, Any], arithmetic: reference.Arithmetic
    ) -> dict[str, np.ndarray]:
        q, k, v, dout = host
        results = dict(zip(("out", "lse"), reference.attention(q, k, v, **options, arithmetic=arithmetic), strict=True))
        if self.backward:
            results |= _present(reference.attention_bwd(dout, q, k, v, **options, arithmetic=arithmetic))
        return results


def _present(grads: AttentionGrads) -> dict[str, Any]:
    return {name: grad for name, grad in grads._asdict().items() if grad is not None}


def check(device: Device, spec: AttentionSpec, *, backward: bool) -> str | None:
    """Check what a call of this spec would use; None if it is right, or what is wrong."""
    return Case(spec.dtype, spec.head_dim, max(1, spec.v_dim), features(spec), spec.block_size, backward).run(device)


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Empty, FULL and PARTIAL blocks."""
    blocks = rng.integers(0, 3, (-(-_Q_LEN // size[0]), -(-_KV_LEN // size[1])))
    blocks[:, 0] = 1
    spread = blocks.repeat(size[0], 0).repeat(size[1], 1)[:_Q_LEN, :_KV_LEN]
    return (spread == 1) | ((spread == 2) & (rng.random(spread.shape) < 0.5))


def _compare(got: np.ndarray, expected: np.ndarray, naive: np.ndarray, *, grad: bool) -> str | None:
    own = got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(own[~finite], expected[~finite], equal_nan=True) or not np.isfinite(own[finite]).all():
        return "inf or nan where there should be none, or none where there should be"
    allowed = _SLACK * bound.allowed_error(expected, naive.astype(got.dtype), got.dtype, grad=grad, num_keys=_KV_LEN)
    error = float(np.abs(own[finite] - expected[finite]).max(initial=0))
    return f"error {error:.2e}, {allowed:.2e} is allowed" if error > allowed else None
