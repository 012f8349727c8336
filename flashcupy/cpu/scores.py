"""Score tiles: s = softcap(scale * q.k) + bias - slope * |i + offset - j|, minus a reference per row, in `unit`s.

Operands are packed once per stack of heads, with one column more than they have. The query's holds minus the row's
reference (a running maximum, or lse), the key's holds 1: the matrix product then delivers s - reference, and a pass
over the tile is saved. In the same way the value's 1 makes the product with P deliver row sums, and dout's holds minus
delta.
"""

from __future__ import annotations

import math

import numpy as np

from flashcupy.cpu import schedule
from flashcupy.cpu.arithmetic import Arithmetic
from flashcupy.cpu.heads import Columns, Heads
from flashcupy.philox import keep_mask, keep_scale, keep_threshold
from flashcupy.spec import AttentionProblem


def pack(matrices: np.ndarray, dtype: np.dtype, last: float = 1.0, factor: float = 1.0) -> np.ndarray:
    """Copy (heads, rows, columns) to `dtype`, times `factor`, with one more column holding `last`."""
    packed = np.empty((*matrices.shape[:2], matrices.shape[2] + 1), dtype)
    packed[..., :-1] = matrices
    if factor != 1.0:
        packed[..., :-1] *= factor
    packed[..., -1] = last
    return packed


def without_hidden(rows: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """Zero the rows that nothing in the tile sees: 0 * NaN would carry what they hold into visible results."""
    return rows if seen is None or seen.all() else np.where(seen[..., None], rows, rows.dtype.type(0))


class TileBuffers:
    """Scratch memory of one task, reused from tile to tile: score-sized, and for keys and values gathered by lists."""

    def __init__(self, count: int, dtype: np.dtype) -> None:
        self._flat = [np.empty(schedule.TILE_AREA, dtype) for _ in range(count)]
        self._gathered = [np.empty(0, dtype) for _ in range(2)]

    def take(self, which: int, packed: np.ndarray, columns: Columns) -> np.ndarray:
        """The rows of a packed key (0) or value (1) matrix that a tile's columns stand for."""
        if isinstance(columns, slice):
            return packed[:, columns]
        shape = packed.shape[0], columns.size, packed.shape[2]
        size = math.prod(shape)
        if self._gathered[which].size < size:
            self._gathered[which] = np.empty(size, packed.dtype)
        out = self._gathered[which][:size].reshape(shape)
        return packed.take(columns, axis=1, out=out, mode="clip")  # any other mode copies once more

    def view(self, which: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._flat[which][: math.prod(shape)].reshape(shape)


class Scores:
    """Score tiles of a stack of heads."""

    def __init__(self, problem: AttentionProblem, arithmetic: Arithmetic, heads: Heads) -> None:
        spec = problem.spec
        self._arithmetic = arithmetic
        self._heads = heads
        self._softcap = spec.softcap
        # q is multiplied by this when packed; gradients of packed scores are brought back by the factors below.
        self.query_factor = spec.scale * (arithmetic.unit if spec.softcap is None else 1.0 / spec.softcap)
        self.dq_factor = spec.scale
        self.dk_factor = spec.scale / self.query_factor if self.query_factor else 0.0

    def tile(
        self, q: np.ndarray, k: np.ndarray, i0: int, columns: Columns, out: np.ndarray, slope: np.ndarray | None = None
    ) -> np.ndarray:
        """Scores minus reference of packed q (G, rows, D + 1) and k (key/value heads, columns, D + 1), into `out`.

        Where the softcap is on and `slope` is given, it receives the cap's derivative.
        """
        unit = self._arithmetic.unit
        grouped_q, grouped_out = self._heads.grouped(q), self._heads.grouped(out)
        if self._softcap is None:
            np.matmul(grouped_q, k.mT, out=grouped_out)
        else:
            np.matmul(grouped_q[..., :-1], k[..., :-1].mT, out=grouped_out)
            np.tanh(out, out=out)
            if slope is not None:
                np.subtract(1.0, np.square(out, out=slope), out=slope)
            out *= self._softcap * unit
            out += q[..., -1:]
        rows = q.shape[1]
        bias = self._heads.bias_tile(i0, i0 + rows, columns)
        if bias is not None:
            out += np.multiply(bias, unit, dtype=out.dtype, casting="unsafe")
        if self._heads.slopes is not None:
            out -= self._distance(i0, rows, columns) * (self._heads.slopes.astype(out.dtype) * unit)
        return out

    def _distance(self, i0: int, rows: int, columns: Columns) -> np.ndarray:
        """|i + offset - j|, exact in float32 up to 2**24."""
        dtype = self._arithmetic.dtype
        offset = i0 + self._heads.sequence.offset
        j = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
        difference = np.subtract.outer(np.arange(offset, offset + rows).astype(dtype), j.astype(dtype))
        return np.abs(difference, out=difference)

    def keep_bits(self, tile: schedule.Tile) -> np.ndarray | None:
        """All-ones integers where a score is visible: ANDed to a tile they leave +0.0 in place of NaN and inf too."""
        return None if tile.visible is None else as_bits(tile.visible, self._arithmetic)


def as_bits(keep: np.ndarray, arithmetic: Arithmetic) -> np.ndarray:
    return np.negative(keep.view(np.int8)).astype(arithmetic.bits)


def mask_bits(tile: np.ndarray, keep: np.ndarray | None) -> None:
    """Set the elements that `keep` does not mark to +0.0, in place, without a branch per element."""
    if keep is not None:
        bits = tile.view(keep.dtype)
        np.bitwise_and(bits, keep, out=bits)


class Dropout:
    """The keep mask of a stack of heads, tile by tile; `scale` is what survivors are multiplied by."""

    def __init__(self, problem: AttentionProblem, arithmetic: Arithmetic, heads: Heads) -> None:
        assert problem.seed is not None
        self._arithmetic = arithmetic
        self._threshold = keep_threshold(problem.spec.dropout)
        stack = range(heads.q_heads.start, heads.q_heads.stop)
        self._streams = [(*problem.seed, heads.sequence.batch, head) for head in stack]
        self.scale = keep_scale(self._threshold)

    @classmethod
    def of(cls, problem: AttentionProblem, arithmetic: Arithmetic, heads: Heads) -> Dropout | None:
        return cls(problem, arithmetic, heads) if problem.spec.dropout else None

    def keep_bits(self, i0: int, i1: int, columns: Columns) -> np.ndarray:
        cols = (columns.start, columns.stop) if isinstance(columns, slice) else columns
        masks = [keep_mask(self._threshold, *stream, (i0, i1), cols) for stream in self._streams]
        return as_bits(np.stack(masks), self._arithmetic)
