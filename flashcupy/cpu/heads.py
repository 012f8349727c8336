"""Some heads of one sequence: their operands as views, and which of their scores are visible."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashcupy.spec import AttentionProblem, Sequence

# Columns of keys that a tile visits: a run, ascending indices (m,), or indices of their own for each cell (G, m).
Columns = slice | np.ndarray
Block = tuple[int, int]  # first row, end row


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
        # Beyond all rows and keys a window is unbounded, and its ends must not leave int64.
        farthest = sequence.q_len + sequence.k_len
        left, right = (side if side is None or side < farthest else None for side in problem.spec.window)
        if problem.spec.causal is not None:
            right = 0 if right is None else min(right, 0)
        return cls(
            None if left is None else sequence.offset - left,
            None if right is None else sequence.offset + right + 1,
            sequence.k_len,
        )

    @property
    def is_bounded(self) -> bool:
        """Whether anything but the number of keys bounds what a row sees."""
        return self.low is not None or self.high is not None

    def span(self, i0: int, i1: int) -> tuple[int, int, int, int]:
        """Columns [first, last) seen by any of the rows i0..i1-1, and [inner_first, inner_last) seen by all of them."""
        if not self.is_bounded:
            return 0, self.k_len, 0, self.k_len
        first, inner_first = (0 if self.low is None else min(max(i + self.low, 0), self.k_len) for i in (i0, i1 - 1))
        inner_last, last = (
            self.k_len if self.high is None else min(max(i + self.high, 0), self.k_len) for i in (i0, i1 - 1)
        )
        return first, last, inner_first, inner_last

    def visible(self, i0: int, i1: int, columns: np.ndarray) -> np.ndarray:
        """Bool (rows, columns)."""
        rows = np.arange(i0, i1)[:, None]
        visible = columns < (self.k_len if self.high is None else np.minimum(rows + self.high, self.k_len))
        if self.low is not None:
            visible = visible & (columns >= rows + self.low)
        return np.broadcast_to(visible, (i1 - i0, columns.size))


@dataclass(frozen=True, slots=True, eq=False)
class Heads:
    """A stack of query heads of one sequence that are computed together, with the key/value heads they use.

    Small problems would spend their time in calls if heads came one by one. Arrays have the G heads of the stack as
    first axis; ``q`` has all heads and rows. ``mask`` and ``bias`` keep extents of 1 where they broadcast;
    ``slopes`` is
    (G, 1, 1), ``sinks`` (G, 1).
    """

    sequence: Sequence
    q_heads: slice
    kv_heads: slice
    q: np.ndarray
    band: Band
    mask: np.ndarray | None
    bias: np.ndarray | None
    slopes: np.ndarray | None
    sinks: np.ndarray | None

    @classmethod
    def of(cls, problem: AttentionProblem, sequence: Sequence, q_heads: slice, kv_heads: slice) -> Heads:
        batch = sequence.batch

        def scores(array: np.ndarray | None) -> np.ndarray | None:
            if array is None:
                return None
            view = problem.score_heads(array, batch)
            return view if view.shape[0] == 1 else view[q_heads]

        slopes = None if problem.alibi_slopes is None else scores(problem.alibi_slopes[..., None, None])
        return cls(
            sequence,
            q_heads,
            kv_heads,
            problem.heads(problem.q, batch),
            Band.of(problem, sequence),
            scores(problem.mask),
            scores(problem.bias),
            slopes,
            None if problem.sinks is None else problem.sinks[q_heads, None].astype(np.float64),
        )

    @property
    def count(self) -> int:
        return self.q_heads.stop - self.q_heads.start

    def bias_tile(self, i0: int, i1: int, columns: Columns) -> np.ndarray | None:
        return None if self.bias is None else cut(self.bias, i0, i1, columns)

    def element_mask(self, i0: int, i1: int, columns: Columns) -> np.ndarray | None:
        """Visibility by mask and by bias = -inf, broadcastable to the tile; None where neither is given."""
        visible = None if self.mask is None else cut(self.mask, i0, i1, columns)
        bias = self.bias_tile(i0, i1, columns)
        if bias is not None:
            finite = bias != -np.inf  # a NaN is an error upstream: it is shown, not hidden
            visible = finite if visible is None else visible & finite
        return visible


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """The G blocks of rows that are computed as one stack: one block of several heads, or several blocks of one head.

    Blocks have equally many rows. Those of one head may visit different columns, as many each.
    """

    heads: Heads
    blocks: tuple[Block, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(G, rows)."""
        i0, i1 = self.blocks[0]
        return self.heads.count * len(self.blocks), i1 - i0

    def pieces(self, columns: Columns | None = None) -> Iterator[tuple[slice, Block, Any]]:
        """Parts of the stack that lie in one block: their place in the stack, the block, their columns."""
        if len(self.blocks) == 1:
            yield slice(None), self.blocks[0], columns
            return
        for g, block in enumerate(self.blocks):
            yield slice(g, g + 1), block, columns[g] if isinstance(columns, np.ndarray) else columns

    def rows(self, array: np.ndarray) -> np.ndarray:
        """Rows of the cells in an array (H, query rows, X) of all heads: (G, rows, X), a view where it can be."""
        parts = [array[self._target(block)] for _, block, _ in self.pieces()]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def store(self, array: np.ndarray, stacked: np.ndarray) -> None:
        """Write (G, rows, X) to where `rows` reads it."""
        for place, block, _ in self.pieces():
            array[self._target(block)] = stacked[place]

    def add(self, array: np.ndarray, stacked: np.ndarray) -> None:
        for place, block, _ in self.pieces():
            array[self._target(block)] += stacked[place]

    def _target(self, block: Block) -> tuple[slice, slice]:
        start = self.heads.sequence.q_start
        return self.heads.q_heads, slice(start + block[0], start + block[1])

    def grouped(self, stacked: np.ndarray) -> np.ndarray:
        """(G, rows, columns) as (stacks of keys, rows of all that use one, columns)."""
        kv_heads = self.heads.kv_heads.stop - self.heads.kv_heads.start
        return stacked if len(self.blocks) > 1 else stacked.reshape(kv_heads, -1, stacked.shape[-1])

    def keys_seen(self, columns_seen: np.ndarray | None) -> np.ndarray | None:
        """Bool (stacks of keys or 1, columns) from bool (G or 1, columns): somebody in the stack sees the key."""
        if columns_seen is None or len(columns_seen) == 1:
            return columns_seen
        return np.asarray(self.grouped(columns_seen[:, None]).any(axis=1))


def cut(stack: np.ndarray, i0: int, i1: int, columns: Columns) -> np.ndarray:
    """The tile of (heads, rows, columns); extents of 1 stay, to broadcast."""
    rows = stack if stack.shape[1] == 1 else stack[:, i0:i1]
    return rows if rows.shape[2] == 1 else rows[:, :, columns]
