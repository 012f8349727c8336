"""The small problem that a kernel new on a GPU is checked on, against the oracle."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import flashcupy
from flashcupy import arrays, bound, reference
from flashcupy.block_mask import BlockMask
from flashcupy.cuda.config import features, tile_table
from flashcupy.cuda.device import Device
from flashcupy.cuda.table_sm80 import MOST_HEADS
from flashcupy.spec import AttentionSpec

Results = dict[str, Any]

_KV_HEADS = 1
# Rows that end inside a tile of any size, more keys than queries, and of either more than one tile.
_Q_LEN = 150
# The contract's bound compares largest errors, which in a problem this small are partly luck. A wrong kernel is off by
# far more than this.
_SLACK = 4


def _kv_len() -> int:
    """Keys of more than four tiles, so that each stage of shared memory is filled a second time."""
    return 203 if tile_table() == "small" else 4 * 128 + 11


class _Problem(NamedTuple):
    """Operands on the host, and the options of the call."""

    operands: tuple[np.ndarray, ...]  # q, k, v, dout
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """A problem that makes use of everything a configuration compiles in.

    ``together`` counts the query heads that share the lists of a block mask, as `AttentionSpec.listed_together` does.
    Its launches are those of the kernels alone that a forward, or a backward of the gradients `wanted`, consists of:
    nothing comes from the host, is packed, or broadcasts over a batch.
    """

    dtype: str
    head_dim: int
    v_dim: int
    features: tuple[str, ...] = ()
    block_size: tuple[int, int] | None = None
    wanted: tuple[str, ...] = ()  # () is a forward
    precision: str = "highest"
    deterministic: bool = False
    together: int = 1

    @property
    def name(self) -> str:
        what = ("bwd", *self.wanted) if self.wanted else ("fwd",)
        what = (*what, "deterministic") if self.deterministic else what
        numbers = self.dtype if self.precision == "highest" else self.precision
        parts = [numbers, f"d{self.head_dim}", f"v{self.v_dim}", *what, *self.features]
        if self.block_size is not None:
            parts.append("blocks{}x{}".format(*self.block_size))
        if self.together > 1:
            parts.append(f"together{self.together}")
        return "-".join(parts)

    @property
    def q_heads(self) -> int:
        return max(2, self.together)

    def run(self, device: Device) -> str | None:
        """Compute it on the device; None if the result is right, or what is wrong."""
        return self.begin(device)()

    def begin(self, device: Device) -> Callable[[], str | None]:
        """Do all that comes before the launches to check: the oracle, the copies, and of a backward the forward."""
        problem = self._problem()
        expected = self._expect(problem, reference.FLOAT64)
        naive = self._expect(problem, bound.coarse(problem.operands[0].dtype, self.precision))
        launch = self._prepare(device, problem)
        return lambda: complaint_of(self.name, device, launch(), expected, naive, self.precision)

    def compute(self, device: Device) -> Results:
        """Launch it all, and look at nothing."""
        return self._prepare(device, self._problem())()

    def _problem(self) -> _Problem:
        dtype = arrays.bfloat16() if self.dtype == "bfloat16" else np.dtype(self.dtype)
        rng = np.random.default_rng(0)
        shapes = (
            (self.q_heads, _Q_LEN, self.head_dim),
            (_KV_HEADS, _kv_len(), self.head_dim),
            (_KV_HEADS, _kv_len(), self.v_dim),
            (self.q_heads, _Q_LEN, self.v_dim),
        )
        operands = tuple((rng.standard_normal(shape) + 0.25).astype(dtype) for shape in shapes)
        return _Problem(operands, self._options(rng))

    def _options(self, rng: np.random.Generator) -> dict[str, Any]:
        scores, heads = (self.q_heads, _Q_LEN, _kv_len()), np.arange(self.q_heads, dtype=np.float32)
        every: dict[str, Any] = {
            "softcap": {"softcap": 3.0},
            "bias": {"bias": rng.standard_normal(scores).astype(np.float32)},
            "alibi": {"alibi_slopes": 0.25 / (1 + 3 * heads)},
            "mask": {"mask": rng.random(scores) < 0.7},
            "dropout": {"dropout": 0.25, "seed": (1, 2)},
        }
        options: dict[str, Any] = {"causal": True}
        if not self.wanted or "sinks" in self.wanted:
            options["sinks"] = 0.5 - heads / (self.q_heads - 1)
        for name in self.features:
            options |= every[name]
        if self.block_size is not None:
            size = (min(self.block_size[0], 128), min(self.block_size[1], 128))
            options["block_mask"] = BlockMask.from_dense(self._pattern(rng, size), block_size=size)
        return options

    def _pattern(self, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Empty, FULL and PARTIAL blocks, for all heads or for each."""
        heads = 1 if self.together > 1 else self.q_heads
        blocks = rng.integers(0, 3, (heads, -(-_Q_LEN // size[0]), -(-_kv_len() // size[1])))
        blocks[..., 0] = 1
        spread = blocks.repeat(size[0], 1).repeat(size[1], 2)[:, :_Q_LEN, : _kv_len()]
        return (spread == 1) | ((spread == 2) & (rng.random(spread.shape) < 0.5))

    def _prepare(self, device: Device, problem: _Problem) -> Callable[[], Results]:
        q, k, v, dout = (device.from_host(x) for x in problem.operands)
        own = {name: device.from_host(x) if isinstance(x, np.ndarray) else x for name, x in problem.options.items()}
        own["precision"] = self.precision
        if not self.wanted:
            return lambda: _named(flashcupy.attention(q, k, v, return_lse=True, **own))
        _, residuals = flashcupy.attention_fwd(q, k, v, **own)
        return lambda: _present(
            flashcupy.attention_bwd(dout, residuals, wrt=self.wanted, deterministic=self.deterministic)
        )

    def _expect(self, problem: _Problem, arithmetic: reference.Arithmetic) -> Results:
        q, k, v, dout = problem.operands
        if self.wanted:
            return _present(reference.attention_bwd(dout, q, k, v, **problem.options, arithmetic=arithmetic))
        return _named(reference.attention(q, k, v, **problem.options, arithmetic=arithmetic))


def case_of(
    spec: AttentionSpec, wanted: tuple[str, ...] = (), precision: str = "highest", *, deterministic: bool = False
) -> Case:
    """The case with the kernels of a call: its forward, or its backward of the gradients `wanted`.

    `precision` is what those kernels are held to.
    """
    own = bool(wanted) and deterministic
    # Fewer heads, of which tiles have as many: every divisor that they may have is one of this, too.
    together = math.gcd(spec.listed_together, math.lcm(*range(1, MOST_HEADS + 1)))
    dims = spec.head_dim, max(1, spec.v_dim)
    return Case(spec.dtype, *dims, features(spec), spec.block_size, wanted, precision, own, together)


def _named(results: tuple[Any, Any]) -> Results:
    return dict(zip(("out", "lse"), results, strict=True))


def _present(grads: Any) -> Results:
    return {name: grad for name, grad in grads._asdict().items() if grad is not None}


def complaint_of(
    case: str, device: Device, got: Results, expected: Results, naive: Results, precision: str = "highest"
) -> str | None:
    """None if results on the device are as right as the contract asks for, or what is wrong."""
    for name, own in got.items():
        grad = name.startswith("d")
        if complaint := _compare(device.to_host(own), expected[name], naive[name], grad, precision):
            return f"{name} of {case}: {complaint}"
    return None


def _compare(got: np.ndarray, expected: np.ndarray, naive: np.ndarray, grad: bool, precision: str) -> str | None:
    own = got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(own[~finite], expected[~finite], equal_nan=True) or not np.isfinite(own[finite]).all():
        return "inf or nan where there should be none, or none where there should be"
    allowed = _SLACK * bound.allowed_error(
        expected, naive.astype(got.dtype), got.dtype, grad=grad, num_keys=_kv_len(), precision=precision
    )
    error = float(np.abs(own[finite] - expected[finite]).max(initial=0))
    return f"error {error:.2e}, {allowed:.2e} is allowed" if error > allowed else None
