"""The small problems that kernels which score blocks are checked on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import flashcupy
from flashcupy import arrays, bound, reference, reference_blocks
from flashcupy.cuda.config_scores import Scoring
from flashcupy.cuda.device import Device
from flashcupy.cuda.first_use import Results, complaint_of

_Q_HEADS, _KV_HEADS = 2, 1
_Q_LEN, _KV_LEN = 150, 203  # neither ends where a block does
# Cells smaller than a tile, and cells of several.
_BLOCK_SIZES = ((16, 16), (128, 32), (32, 128))


@dataclass(frozen=True, slots=True)
class ScoresCase:
    """Scores of blocks of several sizes; of ``block_mass``, the forward before gets ready ahead of the check."""

    kernel: Scoring
    dtype: str
    head_dim: int = 24
    features: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join((self.kernel, self.dtype, f"d{self.head_dim}", *self.features))

    def run(self, device: Device) -> str | None:
        """Compute it on the device; None if the result is right, or what is wrong."""
        return self.begin(device)()

    def begin(self, device: Device) -> Callable[[], str | None]:
        """Do all that comes before the launches to check: the oracle, the copies, and the forward."""
        expected, naive = self._expect(reference.FLOAT64), self._expect(bound.coarse(np.dtype(self._dtype)))
        launch = self._prepare(device)
        return lambda: complaint_of(self.name, device, launch(), expected, naive)

    def compute(self, device: Device) -> Results:
        """Launch it all, and look at nothing."""
        return self._prepare(device)()

    @property
    def _dtype(self) -> np.dtype:
        return arrays.bfloat16() if self.dtype == "bfloat16" else np.dtype(self.dtype)

    def _operands(self) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
        rng = np.random.default_rng(0)
        q, k = (
            (rng.standard_normal((heads, rows, self.head_dim)) + 0.25).astype(self._dtype)
            for heads, rows in ((_Q_HEADS, _Q_LEN), (_KV_HEADS, _KV_LEN))
        )
        if self.kernel == "pooled_scores":
            return q, k, {}
        shape = (_Q_HEADS, _Q_LEN, _KV_LEN)
        every: dict[str, Any] = {
            "softcap": {"softcap": 3.0},
            "bias": {"bias": rng.standard_normal(shape).astype(np.float32)},
            "alibi": {"alibi_slopes": np.array([0.25, 0.0625], np.float32)},
            "mask": {"mask": rng.random(shape) < 0.7},
        }
        options: dict[str, Any] = {"causal": True, "sinks": np.array([0.5, -0.5], np.float32)}
        for name in self.features:
            options |= every[name]
        return q, k, options

    def _prepare(self, device: Device) -> Callable[[], Results]:
        q, k, options = self._operands()
        own = device.from_host(q), device.from_host(k)
        there = {name: device.from_host(x) if isinstance(x, np.ndarray) else x for name, x in options.items()}
        if self.kernel == "block_mass":
            flashcupy.attention_fwd(*own, device.from_host(k[..., :0]), **there)
        compute = getattr(flashcupy, self.kernel)
        return lambda: {_named(size): compute(*own, block_size=size, **there) for size in _BLOCK_SIZES}

    def _expect(self, arithmetic: reference.Arithmetic) -> Results:
        q, k, options = self._operands()
        compute = getattr(reference_blocks, self.kernel)
        return {_named(size): compute(q, k, block_size=size, arithmetic=arithmetic, **options) for size in _BLOCK_SIZES}


def _named(size: tuple[int, int]) -> str:
    return "blocks of {} x {}".format(*size)
