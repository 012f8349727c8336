"""Score tiles: s = softcap(scale * q.k) + bias - slope * |i + offset - j|, minus a reference per row, in `unit`s.

Operands are packed once per stack of heads, with one column more than they have. The query's holds minus the row's
reference (a value near its maximum), the key's holds 1: the matrix product then delivers s - reference, and a pass
over the tile is saved. In the same way the value's 1 makes the product with P deliver row sums, and dout's holds minus
delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from flashcupy.cpu import schedule
from flashcupy.cpu.arithmetic import Arithmetic
from flashcupy.cpu.heads import Block, Cells, Columns
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
        self._flat = [np.empty(schedule.STACK_AREA, dtype) for _ in range(count)]
        self._gathered = [np.empty(0, dtype) for _ in range(2)]

    def take(self, which: int, packed: np.ndarray, columns: Columns) -> np.ndarray:
        """The rows of a packed key (0) or value (1) matrix that a tile's columns stand for."""
        if isinstance(columns, slice):
            return packed[:, columns]
        if columns.ndim == 2:  # of one head, for each cell its own
            packed = packed[0]
        shape = (*packed.shape[:-2], *columns.shape, packed.shape[-1])
        size = math.prod(shape)
        if self._gathered[which].size < size:
            self._gathered[which] = np.empty(size, packed.dtype)
        out = self._gathered[which][:size].reshape(shape)
        return packed.take(columns, axis=-2, out=out, mode="clip")  # any other mode copies once more

    def view(self, which: int, shape: tuple[int, int, int]) -> np.ndarray:
        return self._flat[which][: math.prod(shape)].reshape(shape)


@dataclass(frozen=True, slots=True)
class Factors:
    """What q is multiplied by when packed, what gradients of packed scores are, and what dropout's survivors are."""

    query: float
    dq: float
    dk: float
    survivors: float

    @classmethod
    def of(cls, problem: AttentionProblem, arithmetic: Arithmetic) -> Factors:
        spec = problem.spec
        query = spec.scale * (arithmetic.unit if spec.softcap is None else 1.0 / spec.softcap)
        dk = spec.scale / query if query else 0.0
        return cls(query, spec.scale, dk, keep_scale(keep_threshold(spec.dropout)))


class Scores:
    """Score tiles of a stack of cells."""

    def __init__(self, problem: AttentionProblem, arithmetic: Arithmetic, cells: Cells) -> None:
        spec = problem.spec
        self._arithmetic = arithmetic
        self._cells = cells
        self._softcap = spec.softcap
        # Whether the product may deliver s - reference: not where something comes between them.
        self._folds = spec.softcap is None and cells.heads.slopes is None
        # Scores that are nothing but scaled products.
        self.plain = self._folds and cells.heads.bias is None

    def tile(
        self, q: np.ndarray, k: np.ndarray, columns: Columns, out: np.ndarray, slope: np.ndarray | None = None
    ) -> np.ndarray:
        """Scores minus reference of packed q (G, rows, D + 1) and k (stacks of keys, columns, D + 1), into `out`.

        Where the softcap is on and `slope` is given, it receives the cap's derivative.
        """
        unit, grouped = self._arithmetic.unit, self._cells.grouped
        if self._folds:
            np.matmul(grouped(q), k.mT, out=grouped(out))
        else:
            np.matmul(grouped(q)[..., :-1], k[..., :-1].mT, out=grouped(out))
        if self._softcap is not None:
            np.tanh(out, out=out)
            if slope is not None:
                np.subtract(1.0, np.square(out, out=slope), out=slope)
            out *= self._softcap * unit
        if not self.plain:
            for place, block, own in self._cells.pieces(columns):
                self._add_terms(out[place], q[place, :, -1:], block, own)
        return out

    def _add_terms(self, out: np.ndarray, minus_reference: np.ndarray, block: Block, columns: Columns) -> None:
        """Add what is not a product: bias, ALiBi's penalty, and the reference where the product did not take it."""
        heads, unit = self._cells.heads, self._arithmetic.unit
        bias = heads.bias_tile(*block, columns)
        if bias is not None:
            out += _in_unit(bias, unit, out.dtype)
        if heads.slopes is not None:
            # Far from the diagonal penalty and reference are large and cancel: in float64, and rounded once.
            penalty = self._distance(block, columns) * (heads.slopes.astype(np.float64) * unit)
            penalty -= minus_reference
            np.subtract(out, penalty, out=out, casting="unsafe")
        elif not self._folds:
            out += minus_reference

    def _distance(self, block: Block, columns: Columns) -> np.ndarray:
        """|i + offset - j| in float64."""
        offset = self._cells.heads.sequence.offset
        i = np.arange(block[0] + offset, block[1] + offset, dtype=np.float64)
        j = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
        difference = np.subtract.outer(i, j.astype(np.float64))
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
    """The keep mask of a stack of cells, tile by tile."""

    def __init__(self, problem: AttentionProblem, arithmetic: Arithmetic, cells: Cells) -> None:
        assert isinstance(problem.seed, tuple)
        seed, offset = problem.seed
        self._arithmetic, self._cells = arithmetic, cells
        self._threshold = keep_threshold(problem.spec.dropout)
        q_heads = cells.heads.q_heads
        self._streams = [
            (seed, offset, cells.heads.sequence.batch, head) for head in range(q_heads.start, q_heads.stop)
        ]

    @classmethod
    def of(cls, problem: AttentionProblem, arithmetic: Arithmetic, cells: Cells) -> Dropout | None:
        return cls(problem, arithmetic, cells) if problem.spec.dropout else None

    def keep_bits(self, columns: Columns) -> np.ndarray:
        masks = [
            keep_mask(self._threshold, *stream, block, (own.start, own.stop) if isinstance(own, slice) else own)
            for _, block, own in self._cells.pieces(columns)
            for stream in self._streams
        ]
        return as_bits(np.stack(masks), self._arithmetic)


def _in_unit(bias: np.ndarray, unit: float, dtype: np.dtype) -> np.ndarray:
    """Multiply; the least finite biases, by which some hide, do not become -inf: rows of nothing else weigh equally."""
    product = np.multiply(bias, unit, dtype=dtype, casting="unsafe")
    most = np.finfo(dtype).max
    beyond = bias < -most / unit
    if beyond.any():
        np.copyto(product, -most, where=beyond & (bias != -np.inf))
    return product
