"""Which columns a block of query rows visits, in tiles, and which of their scores are visible.

Two schedules: `BandSchedule` computes the columns (causal, window, lengths), `ListSchedule` reads them from a
BlockMask. Empty tiles are never yielded; a tile whose scores are all visible carries no mask.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flashcupy.blocks.bits import WORD, unpack
from flashcupy.cpu.heads import Block, Cells, Columns, Heads

if TYPE_CHECKING:
    from flashcupy.block_mask import BlockMask

# Measured with the AVX2 and AVX-512 kernels of OpenBLAS: 256 x 512 float32 scores stay in a 1 MiB L2, BLAS runs at full
# rate, and the diagonal of a causal problem wastes little.
BLOCK_ROWS = 256
TILE_AREA = 256 * 512
MAX_TILE_COLUMNS = 8192
# A stack of small tiles may be larger: each of its products fits by itself, and there are fewer calls. The threads of
# a call take turns at Python, so that small tiles one by one would gain nothing from a second thread.
STACK_AREA = 4 * TILE_AREA
# Rows of blocks are taken together while the tile's area grows by no more than this over visiting them one by one.
MERGE_WASTE = 1.2

_ABSENT, _FULL = -2, -1


class Tile(NamedTuple):
    """Columns of keys, and bool (G or 1, rows, columns) visibility or None where every score is visible."""

    columns: Columns
    visible: np.ndarray | None

    @property
    def width(self) -> int:
        return self.columns.stop - self.columns.start if isinstance(self.columns, slice) else self.columns.shape[-1]

    @property
    def rows_seen(self) -> np.ndarray | None:
        """Bool (G or 1, rows): the row sees a key of this tile. None is all."""
        return None if self.visible is None else np.asarray(self.visible.any(axis=2))

    @property
    def columns_seen(self) -> np.ndarray | None:
        """Bool (G or 1, columns): some row of this tile sees the key. None is all."""
        return None if self.visible is None else np.asarray(self.visible.any(axis=1))


class BandSchedule:
    """Tiles of a problem without lists, in blocks of `rows`."""

    def __init__(self, q_len: int, rows: int) -> None:
        self._q_len, self._rows = q_len, rows

    @property
    def most_blocks(self) -> int:
        """Row blocks, counted without making them; here exact."""
        return -(-self._q_len // self._rows)

    @cached_property
    def row_blocks(self) -> list[Block]:
        return cut_rows(0, self._q_len, self._rows)

    def stacks(self, heads: Heads, blocks: Iterable[Block]) -> Iterator[Cells]:
        """Blocks that are computed together: here each by itself."""
        return (Cells(heads, (block,)) for block in blocks)

    def tiles(self, cells: Cells) -> Iterator[Tile]:
        """Tiles that the cells visit, without those where nothing is visible."""
        heads, ((i0, i1),) = cells.heads, cells.blocks
        first, last, inner_first, inner_last = heads.band.span(i0, i1)
        width = _tile_width(i1 - i0)
        spans = [slice(j, min(j + width, last)) for j in range(first, last, width)]
        # Full tiles first: they give the running softmax a reference without a masked maximum.
        for span in sorted(spans, key=lambda s: not inner_first <= s.start <= s.stop <= inner_last):
            crosses = not inner_first <= span.start <= span.stop <= inner_last
            band = heads.band.visible(i0, i1, np.arange(span.start, span.stop)) if crosses else None
            yield from filter(_is_visited, (_tile(heads, (i0, i1), span, band),))


class ListSchedule:
    """Tiles of one row list of a BlockMask, shared by all heads that use that list."""

    def __init__(self, block_mask: BlockMask, batch: int, head: int, q_len: int) -> None:
        _, heads, _, self._k_end = block_mask.shape
        self._mask = block_mask
        self._bq, self._bk = block_mask.block_size
        self._q_len = q_len
        self._first_row = (batch * heads + head) * block_mask.num_block_rows
        self._joints: dict[tuple[int, int], tuple[np.ndarray, np.ndarray | None]] = {}

    @property
    def most_blocks(self) -> int:
        """Row blocks at most, if none are merged."""
        return -(-self._q_len // min(self._bq, BLOCK_ROWS))

    @cached_property
    def row_blocks(self) -> list[Block]:
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
        union: set[int] = set()
        visited = rows = 0
        for r in range(n_rows):
            ids = set(self._row(r)[0].tolist())
            fits = rows and (rows + 1) * self._bq <= BLOCK_ROWS
            if fits and (rows + 1) * len(union | ids) <= MERGE_WASTE * (visited + len(ids)):
                union, visited, rows = union | ids, visited + len(ids), rows + 1
                continue
            yield r
            union, visited, rows = ids, len(ids), 1

    def _row(self, r: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Ascending block ids of block row r, and their codes: FULL or the id of a pattern; None is FULL for all."""
        mask, row = self._mask, self._first_row + r
        full = slice(*mask.full_indptr[row : row + 2].tolist())
        partial = slice(*mask.partial_indptr[row : row + 2].tolist())
        full_ids = mask.full_indices[full]
        if partial.start == partial.stop:
            return full_ids, None
        ids = np.concatenate((full_ids, mask.partial_indices[partial]))
        codes = np.concatenate((np.full(full_ids.size, _FULL), mask.bits_id[partial]))
        order = np.argsort(ids)
        return ids[order], codes[order]

    def stacks(self, heads: Heads, blocks: Iterable[Block]) -> Iterator[Cells]:
        """Blocks of one head that are computed together: equally many rows, equally many columns."""
        if heads.count > 1:
            yield from (Cells(heads, (block,)) for block in blocks)
            return
        alike: dict[tuple[int, int], list[Block]] = {}
        for block in blocks:
            alike.setdefault((block[1] - block[0], self._visited(heads, block)), []).append(block)
        for (rows, visited), members in alike.items():
            size = stack_limit(rows, visited)
            yield from (Cells(heads, tuple(members[g : g + size])) for g in range(0, len(members), size))

    def tiles(self, cells: Cells) -> Iterator[Tile]:
        """Tiles that the cells visit, without those where nothing is visible."""
        columns = self._full_columns(cells)
        if columns is not None:
            return iter((Tile(columns, None),))
        each = [self._tiles(cells.heads, block) for block in cells.blocks]
        joint = each[0] if len(each) == 1 else map(_stack, zip(*each, strict=True))
        return filter(_is_visited, joint)

    def _full_columns(self, cells: Cells) -> np.ndarray | None:
        """Columns (G, m) of cells that visit FULL blocks only, in one tile; None where it is not as simple as that.

        The usual case of top-k selection: there, making tiles one by one would cost as much as computing them.
        """
        heads, rows = cells.heads, cells.shape[1]
        if len(cells.blocks) == 1 or heads.band.is_bounded or heads.mask is not None or heads.bias is not None:
            return None
        lists = [self._reached(heads, block) for block in cells.blocks]
        ids = np.stack([own for own, _ in lists]).astype(np.int64)
        whole = ids.size and (int(ids.max()) + 1) * self._bk <= heads.band.k_len
        if not whole or ids.shape[1] * self._bk > _tile_width(rows) or any(codes is not None for _, codes in lists):
            return None
        return (ids[:, :, None] * self._bk + np.arange(self._bk)).reshape(len(ids), -1)

    def _visited(self, heads: Heads, block: Block) -> int:
        """Columns that a block visits."""
        ids, _ = self._reached(heads, block)
        return ids.size * self._bk - max(0, (int(ids[-1]) + 1) * self._bk - heads.band.k_len) if ids.size else 0

    def _tiles(self, heads: Heads, block: Block) -> Iterator[Tile]:
        i0, i1 = block
        ids, codes = self._reached(heads, block)
        _, _, inner_first, inner_last = heads.band.span(i0, i1)
        step = max(1, _tile_width(i1 - i0) // self._bk)
        for start in range(0, ids.size, step):
            own = ids[start : start + step]
            columns = self._columns(own, heads.band.k_len)
            inside = inner_first <= own[0] * self._bk and own[-1] * self._bk + self._bk <= inner_last
            for piece, place in _pieces(columns, _tile_width(i1 - i0)):
                listed = None if codes is None else self._listed(codes[:, start : start + step], i0, i1, place)
                band = None if inside else heads.band.visible(i0, i1, _index(piece))
                visible = band if listed is None else listed if band is None else listed & band
                yield _tile(heads, block, piece, visible)

    def _reached(self, heads: Heads, block: Block) -> tuple[np.ndarray, np.ndarray | None]:
        """Ids and codes of the listed blocks that the band reaches."""
        i0, i1 = block
        first, last, _, _ = heads.band.span(i0, i1)
        ids, codes = self._joint(i0 // self._bq, -(-i1 // self._bq))
        if first == 0 and last == self._k_end:
            return ids, codes
        reached = slice(*np.searchsorted(ids, (first // self._bk, -(-last // self._bk))))
        return ids[reached], None if codes is None else codes[:, reached]

    def _joint(self, r0: int, r1: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Ascending ids of all blocks that the block rows r0..r1-1 list, and codes (block rows, ids).

        Codes are FULL, ABSENT or the id of a bit pattern; None is FULL for all.
        """
        if (r0, r1) not in self._joints:
            self._joints[r0, r1] = self._join(r0, r1)
        return self._joints[r0, r1]

    def _join(self, r0: int, r1: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows = [self._row(r) for r in range(r0, r1)]
        ids = rows[0][0] if len(rows) == 1 else np.unique(np.concatenate([row_ids for row_ids, _ in rows]))
        if all(row_codes is None and row_ids.size == ids.size for row_ids, row_codes in rows):
            return ids, None
        codes = np.full((len(rows), ids.size), _ABSENT)
        for own, (row_ids, row_codes) in zip(codes, rows, strict=True):
            own[np.searchsorted(ids, row_ids)] = _FULL if row_codes is None else row_codes
        return ids, codes

    def _columns(self, ids: np.ndarray, k_len: int) -> Columns:
        """Element columns of ascending block ids, cut at k_len; a run of neighbours is a slice, and costs no gather."""
        first, end = int(ids[0]) * self._bk, (int(ids[-1]) + 1) * self._bk
        if end - first == ids.size * self._bk:
            return slice(first, min(end, k_len))
        columns = (ids.astype(np.int64)[:, None] * self._bk + np.arange(self._bk)).ravel()
        return columns[: columns.size - max(0, end - k_len)]

    def _listed(self, codes: np.ndarray, i0: int, i1: int, place: slice) -> np.ndarray:
        """Visibility by the lists alone of the rows i0..i1-1 and of the columns `place` among those of `codes`.

        Patterns are cut before they are unpacked, so that large blocks cost no more than the tile.
        """
        first = i0 % self._bq
        rows = slice(first, first + i1 - i0) if len(codes) == 1 else slice(0, self._bq)
        words = slice(place.start // WORD, -(-place.stop // WORD)) if codes.shape[1] == 1 else slice(None)
        partial = codes >= 0
        bits = self._mask.bits[codes[partial], rows, words]
        patterns = unpack(bits, min(self._bk, bits.shape[-1] * WORD))
        blocks = np.zeros((*codes.shape, *patterns.shape[1:]), np.bool_)
        blocks[codes == _FULL] = True
        blocks[partial] = patterns
        joint = blocks.swapaxes(1, 2).reshape(len(codes) * patterns.shape[1], -1)
        top, left = first - rows.start, place.start - (words.start or 0) * WORD
        return joint[top : top + i1 - i0, left : left + place.stop - place.start]


Schedule = BandSchedule | ListSchedule


def cut_rows(first: int, end: int, rows: int) -> list[Block]:
    return [(i, min(i + rows, end)) for i in range(first, end, rows)]


def stack_limit(rows: int, columns: int) -> int:
    """Cells that one stack has room for, each of `rows` and visiting `columns`."""
    return max(1, STACK_AREA // (rows * max(1, min(columns, _tile_width(rows)))))


def _tile_width(rows: int) -> int:
    """Columns of a tile; the same however many cells are stacked, so that stacking changes no result."""
    return min(max(TILE_AREA // rows, TILE_AREA // BLOCK_ROWS), MAX_TILE_COLUMNS)


def _width(columns: Columns) -> int:
    return columns.stop - columns.start if isinstance(columns, slice) else columns.size


def _index(columns: Columns) -> np.ndarray:
    return np.arange(columns.start, columns.stop) if isinstance(columns, slice) else columns


def _pieces(columns: Columns, width: int) -> Iterator[tuple[Columns, slice]]:
    """Columns of a tile and their place among `columns`: all, or parts where one block of keys is wider than a tile."""
    total = _width(columns)
    if not isinstance(columns, slice) or total <= width:
        yield columns, slice(0, total)
        return
    for start in range(0, total, width):
        stop = min(start + width, total)
        yield slice(columns.start + start, columns.start + stop), slice(start, stop)


def _tile(heads: Heads, block: Block, columns: Columns, visible: np.ndarray | None) -> Tile:
    """Join the schedule's own visibility (rows, columns) with the heads' masks."""
    own = None if visible is None else visible[None]
    elements = heads.element_mask(*block, columns)
    if elements is None:
        return Tile(columns, own)
    joint = elements if own is None else elements & own
    joint = np.broadcast_to(joint, (len(joint), block[1] - block[0], _width(columns)))
    return Tile(columns, None if joint.all() else joint)


def _stack(tiles: Sequence[Tile]) -> Tile:
    columns = np.stack([_index(tile.columns) for tile in tiles])
    if all(tile.visible is None for tile in tiles):
        return Tile(columns, None)
    rows = next(tile.visible.shape[1] for tile in tiles if tile.visible is not None)
    everything = np.ones((1, rows, columns.shape[1]), np.bool_)
    return Tile(columns, np.concatenate([everything if t.visible is None else t.visible for t in tiles]))


def _is_visited(tile: Tile) -> bool:
    return tile.width > 0 and (tile.visible is None or bool(tile.visible.any()))
