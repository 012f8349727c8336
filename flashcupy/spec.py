"""One description for every entry point: AttentionSpec is the metadata, AttentionProblem joins the arrays to it.

A spec holds no arrays and is hashable: it is what plans are cached by, what `explain` talks about and what a backend
checks for support. A problem is what a backend computes. Both are made, fully validated, by `flashcupy.build`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from flashcupy.arrays import Array

if TYPE_CHECKING:
    from flashcupy.block_mask import BlockMask

StrideClass = Literal["contiguous", "rows", "any"]


class OperandSpec(NamedTuple):
    """Shape, dtype and class of strides of one operand.

    ``strides``: "contiguous" = row-major without gaps, "rows" = contiguous in the last dim only, "any" = the rest.
    """

    shape: tuple[int, ...]
    dtype: str
    strides: StrideClass

    @classmethod
    def of(cls, shape: tuple[int, ...], strides: tuple[int, ...], dtype: np.dtype) -> OperandSpec:
        kind: StrideClass = "any"
        if _is_contiguous(shape, strides, dtype.itemsize):
            kind = "contiguous"
        elif shape[-1] == 1 or strides[-1] == dtype.itemsize:
            kind = "rows"
        return cls(shape, dtype.name, kind)


def _is_contiguous(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    if 0 in shape:
        return True
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != itemsize:
            return False
        itemsize *= extent
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """Hashable metadata of one attention problem.

    ``batch`` are the broadcast batch dims, or (number of sequences,) where ``varlen``; then ``q_len`` and ``kv_len``
    are the longest sequences and the rows of all sequences lie packed in one axis. ``headless`` says that all of
    q, k, v came as matrices, so that results drop the head axis. ``block_size`` and ``mask_heads`` are a block mask's,
    None without one. ``operands`` lists every array by name.
    """

    batch: tuple[int, ...]
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    head_dim: int
    v_dim: int
    dtype: str
    device: str
    varlen: bool
    headless: bool
    scale: float
    causal: str | None
    window: tuple[int | None, int | None]
    softcap: float | None
    dropout: float
    precision: str
    block_size: tuple[int, int] | None
    mask_heads: int | None
    operands: tuple[tuple[str, OperandSpec], ...]

    @property
    def batch_size(self) -> int:
        return math.prod(self.batch)

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.q_heads // self.kv_heads if self.kv_heads else 0

    @property
    def listed_together(self) -> int:
        """Neighbouring query heads that share a key/value head and the lists of a block mask; 1 without lists."""
        return max(1, self.group) if self.mask_heads in (1, self.kv_heads) else 1

    def operand(self, name: str) -> OperandSpec:
        return dict(self.operands)[name]

    def out_shape(self, last: int) -> tuple[int, ...]:
        """Shape of a result with one row per query row and `last` columns."""
        rows = self.operand("q").shape[-2]
        if self.headless:
            return rows, last
        return (*(() if self.varlen else self.batch), self.q_heads, rows, last)

    @property
    def lse_shape(self) -> tuple[int, ...]:
        return self.out_shape(0)[:-1]


_LENGTHS = ("q_lengths", "kv_lengths", "cu_seqlens_q", "cu_seqlens_k")
_INPUTS = ("q", "k", "v", "mask", "bias", "alibi_slopes", "sinks", "seed", *_LENGTHS)


class Sequence(NamedTuple):
    """Where the rows of one flat batch entry lie, and how its diagonals are aligned.

    ``q_start``/``k_start`` are 0 unless rows are packed (varlen); lengths are the used ones. ``offset`` is `off` of
    the score formula: query i stands on the diagonal at key i + offset.
    """

    batch: int
    q_start: int
    q_len: int
    k_start: int
    k_len: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionProblem:
    """A spec and its operands, viewed without a copy in the shapes the caller gave; `library` takes the results back.

    q, k, v, mask and bias are where ``spec.device`` says. The others may be on the host too: there ``q_lengths``,
    ``kv_lengths``, ``cu_seqlens_q`` and ``cu_seqlens_k`` are checked flat int64 arrays and ``seed`` is (seed, offset).
    On a device they are as the caller gave them, int32 or int64, of unknown value, and ``seed`` is a uint64 array of 2.
    """

    spec: AttentionSpec
    library: str
    q: Array
    k: Array
    v: Array
    mask: Array | None
    bias: Array | None
    alibi_slopes: Array | None
    sinks: Array | None
    block_mask: BlockMask | None
    seed: tuple[int, int] | Array | None
    q_lengths: Array | None
    kv_lengths: Array | None
    cu_seqlens_q: Array | None
    cu_seqlens_k: Array | None

    def inputs(self) -> Iterator[tuple[str, Array]]:
        """The arrays that an output must not overlap."""
        for name in _INPUTS:
            array = getattr(self, name)
            if array is not None and not isinstance(array, tuple):
                yield name, array

    def sequence(self, batch: int) -> Sequence:
        spec = self.spec
        q_start, q_len = _extent(self.cu_seqlens_q, self.q_lengths, batch, spec.q_len)
        k_start, k_len = _extent(self.cu_seqlens_k, self.kv_lengths, batch, spec.kv_len)
        offset = 0 if spec.causal == "top-left" else k_len - q_len
        return Sequence(batch, q_start, q_len, k_start, k_len, offset)

    def heads(self, array: np.ndarray, batch: int) -> np.ndarray:
        """View of one flat batch entry of `array`, (..., H, rows, columns) as the caller wrote it: (H, rows, columns).

        Packed rows (varlen) stay packed; where the batch dims broadcast, entries share a view.
        """
        if array.ndim == 2:
            array = array[None]
        return array if self.spec.varlen else self._entry(array, self.spec.batch, batch)

    def score_heads(self, array: np.ndarray, batch: int) -> np.ndarray:
        """View of mask or bias of one sequence, (H, rows, columns) with extents of 1 where it broadcasts."""
        return self._entry(array, (self.spec.batch_size,) if self.spec.varlen else self.spec.batch, batch)

    @staticmethod
    def _entry(array: np.ndarray, dims: tuple[int, ...], batch: int) -> np.ndarray:
        full = array[(None,) * (len(dims) + 3 - array.ndim)]
        index = np.unravel_index(batch, dims) if dims else ()
        return full[tuple(0 if extent == 1 else i for extent, i in zip(full.shape, index, strict=False))]


def _extent(cu_seqlens: np.ndarray | None, lengths: np.ndarray | None, batch: int, longest: int) -> tuple[int, int]:
    start, length = 0, longest
    if cu_seqlens is not None:
        start = int(cu_seqlens[batch])
        length = int(cu_seqlens[batch + 1]) - start
    if lengths is not None:
        length = int(lengths[batch])
    return start, length
