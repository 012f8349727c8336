"""Which columns a block of query rows visits, in tiles, and which of their scores are visible.

Two schedules: `BandSchedule` computes the columns (causal, window, lengths), `ListSchedule` reads them from a
BlockMask. Empty tiles are never yielded; a tile whose scores are all visible carries no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flashcupy.cpu.heads import Columns, Heads

if TYPE_CHECKING:
    from flashcupy.block_mask import BlockMask

# Measured on two AVX2 and AVX-512 machines: 256 x 512 float32 scores stay in a 1 MiB L2, BLAS runs at full rate, and
# the diagonal of a causal problem wastes little.
BLOCK_ROWS = 256
TILE_AREA = 256 * 512
MAX_TILE_COLUMNS = 8192
# Rows of blocks are taken together while the tile's area grows by no more than this over visiting them one by one.
MERGE_WASTE = 1.2

_ABSENT, _FULL = -2, -1


class Tile(NamedTuple):
    """Columns of keys, and bool (heads or 1, rows, columns) visibility or None where every score is visible."""

    columns: Columns
    visible: np.ndarray | None

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start if isinstance(self.columns, slice) else self.columns.size

    @property
    def rows_seen(self) -> np.ndarray | None:
        """Bool (heads or 1, rows): the row sees a key of this tile. None is all."""
        return None if self.visible is None else np.asarray(self.visible.any(axis=2))

    @property
    def columns_seen(self) -> np.ndarray | None:
        """Bool (heads or 1, columns): some row of this tile sees the key. None is all."""
        return None if self.visible is None else np.asarray(self.visible.any(axis=1))


class BandSchedule:
    """Tiles of a problem without lists."""

    def __init__(self, q_len: int) -> None:
        self._q_len = q_len

    @cached_property
    def row_blocks(self) -> list[tuple[int, int]]:
        return [(i, min(i + BLOCK_ROWS, self._q_len)) for i in range(0, self._q_len, BLOCK_ROWS)]

    def tiles(self, heads: Heads, i0: int, i1: int) -> Iterator[Tile]:
        first, last, inner_first, inner_last = heads.band.span(i0, i1)
        width = _tile_width(i1 - i0)
        spans = [slice(j, min(j + width, last)) for j in range(first, last, width)]
        # Full tiles first: they give the running softmax a reference without a masked maximum.
        for span in sorted(spans, key=lambda s: not inner_first <= s.start <= s.stop <= inner_last):
            crosses = not inner_first <= span.start <= span.stop <= inner_last
            band = heads.band.visible(i0, i1, np.arange(span.start, span.stop)) if crosses else None
            yield from _tile(heads, i0, i1, span, band)


class ListSchedule:
    """Tiles of one row list of a BlockMask, shared by all heads that use that list."""

    def __init__(self, block_mask: BlockMask, batch: int, head: int, q_len: int) -> None:
        _, heads, _, self._k_end = block_mask.shape
        self._mask = block_mask
        self._bq, self._bk = block_mask.block_size
        self._q_len = q_len
        self._first_row = (batch * heads + head) * block_mask.num_block_rows

    @cached_property
    def row_blocks(self) -> list[tuple[int, int]]:
        """Rows that are attended together: several rows of small blocks with similar lists, or parts of a large one."""
        n_rows = -(-self._q_len // self._bq)
        if self._bq >= BLOCK_ROWS:
            starts = (i for r in range(n_rows) for i in range(r * self._bq, (r + 1) * self._bq, BLOCK_ROWS))
            edges = [i for i in starts if i < self._q_len]
        else:
            edges = [r * self._bq for r in self._merged_rows(n_rows)]
        return list(pairwise([*edges, self._q_len]))

    def _merged_rows(self, n_rows: int) -> Iterator[int]:
        """First block row of each group."""
        union, visited, rows = np.empty(0, np.int64), 0, 0
        for r in range(n_rows):
            ids = self._row(r)[0]
            joint = np.union1d(union, ids)
            if (
                rows
                and (rows + 1) * self._bq <= BLOCK_ROWS
                and (rows + 1) * joint.size <= MERGE_WASTE * (visited + ids.size)
            ):
                union, visited, rows = joint, visited + ids.size, rows + 1
                continue
            yield r
            union, visited, rows = ids, ids.size, 1

    def _row(self, r: int) -> tuple[np.ndarray, np.ndarray]:
        """Ascending block ids of block row r, and their codes: FULL or the id of a bit pattern."""
        mask, row = self._mask, self._first_row + r
        full = slice(*mask.full_indptr[row : row + 2])
        partial = slice(*mask.partial_indptr[row : row + 2])
        if partial.start == partial.stop:
            ids = mask.full_indices[full].astype(np.int64)
            return ids, np.full(ids.size, _FULL)
        ids = np.concatenate((mask.full_indices[full], mask.partial_indices[partial])).astype(np.int64)
        codes = np.concatenate((np.full(full.stop - full.start, _FULL), mask.bits_id[partial]))
        order = np.argsort(ids)
        return ids[order], codes[order]

    def tiles(self, heads: Heads, i0: int, i1: int) -> Iterator[Tile]:
        r0 = i0 // self._bq
        first, last, inner_first, inner_last = heads.band.span(i0, i1)
        ids, codes = self._joint(r0, -(-i1 // self._bq))
        reached = slice(*np.searchsorted(ids, (first // self._bk, -(-last // self._bk))))
        ids, codes = ids[reached], codes[:, reached]
        step = max(1, _tile_width(i1 - i0) // self._bk)
        for start in range(0, ids.size, step):
            chunk = ids[start : start + step]
            columns = self._columns(chunk, min(heads.band.k_len, self._k_end))
            index = np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns
            visible = self._listed(codes[:, start : start + step], i0 - r0 * self._bq, i1 - i0, index.size)
            if not (inner_first <= index[0] and index[-1] < inner_last):
                band = heads.band.visible(i0, i1, index)
                visible = band if visible is None else visible & band
            yield from _pieces(heads, i0, i1, columns, visible)

    def _joint(self, r0: int, r1: int) -> tuple[np.ndarray, np.ndarray]:
        """Ascending ids of all blocks that the block rows r0..r1-1 list, and codes (block rows, ids)."""
        rows = [self._row(r) for r in range(r0, r1)]
        if len(rows) == 1:
            return rows[0][0], rows[0][1][None]
        ids = np.unique(np.concatenate([row_ids for row_ids, _ in rows]))
        codes = np.full((len(rows), ids.size), _ABSENT)
        for own, (row_ids, row_codes) in zip(codes, rows, strict=True):
            own[np.searchsorted(ids, row_ids)] = row_codes
        return ids, codes

    def _columns(self, ids: np.ndarray, k_len: int) -> Columns:
        """Element columns of ascending block ids, cut at k_len; a run of neighbours is a slice, and costs no gather."""
        if ids[-1] - ids[0] == ids.size - 1:
            return slice(int(ids[0]) * self._bk, min((int(ids[-1]) + 1) * self._bk, k_len))
        columns = (ids[:, None] * self._bk + np.arange(self._bk)).ravel()
        return columns[: columns.size - max(0, int(columns[-1]) + 1 - k_len)]

    def _listed(self, codes: np.ndarray, first: int, n: int, width: int) -> np.ndarray | None:
        """Visibility by the lists alone for rows first..first+n-1 of the block rows in `codes` (block rows, ids)."""
        if np.all(codes == _FULL):
            return None
        blocks = np.zeros((*codes.shape, self._bq, self._bk), np.bool_)
        blocks[codes == _FULL] = True
        partial = codes >= 0
        blocks[partial] = self._mask.unpack(codes[partial])
        return blocks.swapaxes(1, 2).reshape(codes.shape[0] * self._bq, -1)[first : first + n, :width]


Schedule = BandSchedule | ListSchedule


def _tile_width(rows: int) -> int:
    """Columns of a tile; the same however many heads are stacked, so that stacking changes no result."""
    return int(np.clip(TILE_AREA // rows, TILE_AREA // BLOCK_ROWS, MAX_TILE_COLUMNS))


def stack_limit(rows: int, k_len: int) -> int:
    """Heads that one tile has room for."""
    return max(1, TILE_AREA // (rows * max(1, min(k_len, _tile_width(rows)))))


def _pieces(heads: Heads, i0: int, i1: int, columns: Columns, visible: np.ndarray | None) -> Iterator[Tile]:
    """One tile, or several where a single block is wider than a tile."""
    width = _tile_width(i1 - i0)
    if not isinstance(columns, slice) or columns.stop - columns.start <= width:
        yield from _tile(heads, i0, i1, columns, visible)
        return
    for start in range(columns.start, columns.stop, width):
        piece = slice(start, min(start + width, columns.stop))
        own = slice(piece.start - columns.start, piece.stop - columns.start)
        yield from _tile(heads, i0, i1, piece, None if visible is None else visible[:, own])


def _tile(heads: Heads, i0: int, i1: int, columns: Columns, visible: np.ndarray | None) -> Iterator[Tile]:
    """Join the schedule's own visibility with the heads' masks; nothing where no score is left."""
    tile = Tile(columns, None if visible is None else visible[None])
    elements = heads.element_mask(i0, i1, columns)
    if elements is not None:
        own = np.True_ if tile.visible is None else tile.visible
        joint = np.broadcast_to(elements & own, (len(elements), i1 - i0, tile.width))
        tile = Tile(columns, None if joint.all() else joint)
    if tile.width and (tile.visible is None or tile.visible.any()):
        yield tile
