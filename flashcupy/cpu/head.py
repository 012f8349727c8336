"""One head of one sequence: its operands as 2-D views, and which of its scores are visible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flashcupy.spec import AttentionProblem, Sequence

Columns = slice | np.ndarray


@dataclass(frozen=True, slots=True)
class Band:
    """Row i sees the columns [i + low, i + high) of [0, k_len): causal, window and length in one.

    None means unbounded on that side.
    """

    low: int | None
    high: int | None
    k_len: int

    @classmethod
    def of(cls, problem: AttentionProblem, sequence: Sequence) -> Band:
        left, right = problem.spec.window
        if problem.spec.causal is not None:
            right = 0 if right is None else min(right, 0)
        return cls(
            None if left is None else sequence.offset - left,
            None if right is None else sequence.offset + right + 1,
            sequence.k_len,
        )

    def starts(self, rows: np.ndarray) -> np.ndarray:
        return np.zeros_like(rows) if self.low is None else np.clip(rows + self.low, 0, self.k_len)

    def stops(self, rows: np.ndarray) -> np.ndarray:
        return np.full_like(rows, self.k_len) if self.high is None else np.clip(rows + self.high, 0, self.k_len)

    def span(self, i0: int, i1: int) -> tuple[int, int, int, int]:
        """Columns [first, last) seen by any of the rows i0..i1-1, and [inner_first, inner_last) seen by all of them."""
        ends = np.array((i0, i1 - 1))
        (first, inner_first), (inner_last, last) = self.starts(ends), self.stops(ends)
        return int(first), int(last), int(inner_first), int(inner_last)

    def visible(self, i0: int, i1: int, columns: np.ndarray) -> np.ndarray:
        """Bool (rows, columns)."""
        rows = np.arange(i0, i1)
        visible = columns < self.stops(rows)[:, None]
        if self.low is not None:
            visible &= columns >= self.starts(rows)[:, None]
        return visible


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """Operands of query head `head` in `sequence`; rows beyond the used lengths are cut off.

    ``mask`` and ``bias`` keep extents of 1 where they broadcast.
    """

    sequence: Sequence
    head: int
    q: np.ndarray
    band: Band
    mask: np.ndarray | None
    bias: np.ndarray | None
    slope: float
    sink: float | None

    @classmethod
    def of(cls, problem: AttentionProblem, sequence: Sequence, head: int) -> Head:
        batch = sequence.batch
        start, stop = sequence.q_start, sequence.q_start + sequence.q_len
        slopes, sinks = problem.alibi_slopes, problem.sinks
        return cls(
            sequence,
            head,
            problem.matrix(problem.matrices(problem.q), batch, head)[start:stop],
            Band.of(problem, sequence),
            None if problem.mask is None else problem.scores_operand(problem.mask, batch, head),
            None if problem.bias is None else problem.scores_operand(problem.bias, batch, head),
            0.0 if slopes is None else float(problem.scores_operand(slopes[..., None, None], batch, head)[0, 0]),
            None if sinks is None else float(sinks[head]),
        )

    def bias_tile(self, i0: int, i1: int, columns: Columns) -> np.ndarray | None:
        return None if self.bias is None else cut(self.bias, i0, i1, columns)

    def element_mask(self, i0: int, i1: int, columns: Columns) -> np.ndarray | None:
        """Visibility by mask and by bias = -inf, broadcastable to the tile; None where neither is given."""
        visible = None if self.mask is None else cut(self.mask, i0, i1, columns)
        bias = self.bias_tile(i0, i1, columns)
        if bias is not None:
            finite = bias > -np.inf
            visible = finite if visible is None else visible & finite
        return visible


def cut(matrix: np.ndarray, i0: int, i1: int, columns: Columns) -> np.ndarray:
    """The tile of `matrix`; extents of 1 stay, to broadcast."""
    rows = matrix if matrix.shape[0] == 1 else matrix[i0:i1]
    return rows if rows.shape[1] == 1 else rows[:, columns]
