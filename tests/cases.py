"""Attention problems for tests: sizes, features of the API and how they combine."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from flashcupy import BlockMask

DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float16", "bfloat16", "float32", "float64")}

# What is computed with, by a name of its own: a dtype, or float32 with less accuracy permitted.
NUMBERS: dict[str, dict[str, Any]] = {
    **{name: {"dtype": name} for name in DTYPES},
    "tf32": {"dtype": "float32", "precision": "tf32"},
}


@dataclass(frozen=True)
class Sizes:
    """Extents of one problem."""

    batch: tuple[int, ...] = (2,)
    q_heads: int = 4
    kv_heads: int = 2
    q_len: int = 45
    kv_len: int = 77
    head_dim: int = 20
    v_dim: int = 9

    @property
    def scores(self) -> tuple[int, ...]:
        return (*self.batch, self.q_heads, self.q_len, self.kv_len)


@dataclass(frozen=True)
class Case:
    """A problem made from a seed: sizes, dtype and named features; the precision that float32 is asked for."""

    features: tuple[str, ...] = ()
    dtype: str = "float32"
    sizes: Sizes = field(default_factory=Sizes)
    seed: int = 0
    precision: str = "highest"

    def __str__(self) -> str:
        s, numbers = self.sizes, self.dtype if self.precision == "highest" else self.precision
        return f"{'+'.join(self.features) or 'plain'}-{numbers}-{s.q_len}x{s.kv_len}-h{s.q_heads}:{s.kv_heads}"

    def make(self, draw: int = 0) -> Problem:
        """Draw the problem; the same draw is always the same problem."""
        rng = np.random.default_rng([self.seed, draw, *(sum(map(ord, name)) for name in self.features)])
        s, dtype = self.sizes, DTYPES[self.dtype]
        options: dict[str, Any] = {}
        for name in self.features:
            options |= FEATURES[name](rng, s, dtype)
        q = normal(rng, (*s.batch, s.q_heads, s.q_len, s.head_dim), dtype)
        k = normal(rng, (*s.batch, s.kv_heads, s.kv_len, s.head_dim), dtype)
        v = normal(rng, (*s.batch, s.kv_heads, s.kv_len, s.v_dim), dtype)
        dout = normal(rng, (*s.batch, s.q_heads, s.q_len, s.v_dim), dtype)
        dlse = rng.standard_normal(dout.shape[:-1]).astype(np.float64 if self.dtype == "float64" else np.float32)
        return Problem(q, k, v, dout, dlse, options, self.precision)


@dataclass
class Problem:
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dout: np.ndarray
    dlse: np.ndarray
    options: dict[str, Any]
    precision: str

    @property
    def wrt(self) -> tuple[str, ...]:
        return ("q", "k", "v", *(name for name in ("bias", "sinks") if name in self.options))


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Normal numbers off zero mean, so that outputs do not average away, in memory that is not contiguous."""
    *lead, rows, columns = shape
    wide = rng.standard_normal((*lead, columns + 3, rows + 2)) + 0.25
    return wide.astype(dtype)[..., 1 : columns + 1, 1 : rows + 1].mT


def lengths(rng: np.random.Generator, batch: tuple[int, ...], longest: int) -> np.ndarray:
    """Used lengths with 0, 1 and the whole among them."""
    drawn = rng.integers(0, longest + 1, batch)
    drawn.flat[:1] = longest - longest // 3
    return drawn


def _element_mask(rng: np.random.Generator, s: Sizes, _: np.dtype) -> dict[str, Any]:
    mask = rng.random((*s.batch[-1:], 1, s.q_len, s.kv_len)) < 0.6
    mask[..., : s.q_len // 4, :] = False
    return {"mask": mask}


def _bias(rng: np.random.Generator, s: Sizes, dtype: np.dtype) -> dict[str, Any]:
    bias = rng.standard_normal((s.q_heads, s.q_len, s.kv_len))
    bias[rng.random(bias.shape) < 0.1] = -np.inf
    return {"bias": bias.astype(dtype)}


def _blocks(rng: np.random.Generator, s: Sizes, _: np.dtype) -> dict[str, Any]:
    dense = np.repeat(rng.random((s.kv_heads, -(-s.q_len // 16), s.kv_len)) < 0.4, 16, axis=1)[:, : s.q_len]
    dense[:, :16, :32] = True
    dense[:, 16:32] = False
    return {"block_mask": BlockMask.from_dense(dense, block_size=16)}


def _seed(s: Sizes) -> dict[str, Any]:
    return {"seed": (0x123456789ABCDEF0 + s.q_len, 7)}


FEATURES: dict[str, Callable[[np.random.Generator, Sizes, np.dtype], dict[str, Any]]] = {
    "causal": lambda rng, s, dtype: {"causal": True},
    "top_left": lambda rng, s, dtype: {"causal": "top-left"},
    "window": lambda rng, s, dtype: {"window": (19, 5)},
    "left_window": lambda rng, s, dtype: {"window": (11, None)},
    "scale": lambda rng, s, dtype: {"scale": -0.9},
    "softcap": lambda rng, s, dtype: {"softcap": 1.5},
    "mask": _element_mask,
    "bias": _bias,
    "row_bias": lambda rng, s, dtype: {"bias": rng.standard_normal((s.q_len, 1)).astype(dtype)},
    "alibi": lambda rng, s, dtype: {"alibi_slopes": (rng.random((*s.batch, s.q_heads)) / 4).astype(np.float32)},
    "sinks": lambda rng, s, dtype: {"sinks": rng.standard_normal(s.q_heads).astype(np.float32)},
    "blocks": _blocks,
    "dropout": lambda rng, s, dtype: {"dropout": 0.3, **_seed(s)},
    "q_lengths": lambda rng, s, dtype: {"q_lengths": lengths(rng, s.batch, s.q_len)},
    "kv_lengths": lambda rng, s, dtype: {"kv_lengths": lengths(rng, s.batch, s.kv_len).astype(np.int32)},
}

_EXCLUSIVE = {frozenset(pair) for pair in (("causal", "top_left"), ("window", "left_window"), ("bias", "row_bias"))}


def pairs() -> list[tuple[str, str]]:
    """All pairs of features that set different options."""
    return [pair for pair in itertools.combinations(FEATURES, 2) if frozenset(pair) not in _EXCLUSIVE]


# Sq < Sk, Sq > Sk, equal, one query, one key; MHA, GQA, MQA; sizes off every tile edge and on it.
SHAPES = [
    Sizes(),
    Sizes(batch=(1,), q_heads=3, kv_heads=3, q_len=70, kv_len=33, head_dim=5, v_dim=16),
    Sizes(batch=(3,), q_heads=4, kv_heads=1, q_len=64, kv_len=64, head_dim=16, v_dim=16),
    Sizes(batch=(2, 2), q_heads=2, kv_heads=1, q_len=1, kv_len=50, head_dim=8, v_dim=3),
    Sizes(batch=(), q_heads=2, kv_heads=2, q_len=37, kv_len=1, head_dim=1, v_dim=1),
]
