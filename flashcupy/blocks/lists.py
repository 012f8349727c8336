"""The six arrays of a block mask, and the one way into and out of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import INT32_MAX, Grid

FULL = -1
ABSENT = -2


class Lists:
    """Lists of a mask, wherever they are: those on a device are `flashcupy.cuda.device_lists.DeviceLists`."""

    grid: Grid


@dataclasses.dataclass(frozen=True, eq=False)
class BlockLists(Lists):
    """Compact lists of the visible blocks of each block row; read-only arrays.

    Rows are flat, ``(b * H + h) * nq + i``. Arrays of fixed capacity may be longer than ``indptr[-1]``; what lies
    behind it is padding.

    Attributes
    ----------
    grid : Grid
    full_indptr, partial_indptr : int64 (B * H * nq + 1,)
    full_indices, partial_indices : int32
        Block columns, ascending and unique in a row.
    bits : uint32 (n_patterns, bq, ceil(bk / 32))
        Distinct patterns, in the order of their bytes.
    bits_id : int32, like partial_indices
        The pattern of each PARTIAL block.
    """

    grid: Grid
    full_indptr: npt.NDArray[np.int64]
    full_indices: npt.NDArray[np.int32]
    partial_indptr: npt.NDArray[np.int64]
    partial_indices: npt.NDArray[np.int32]
    bits: npt.NDArray[np.uint32]
    bits_id: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        for array in self.arrays().values():
            array.flags.writeable = False

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the six arrays by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, query rows, key columns."""
        return self.grid.shape

    @property
    def block_size(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.grid.block_size

    @property
    def n_full(self) -> int:
        """FULL blocks listed."""
        return int(self.full_indptr[-1])

    @property
    def n_partial(self) -> int:
        """PARTIAL blocks listed."""
        return int(self.partial_indptr[-1])

    @property
    def n_patterns(self) -> int:
        """Patterns in use."""
        return int(self.bits_id[: self.n_partial].max(initial=-1)) + 1

    def trimmed(self) -> BlockLists:
        """Return the lists without padding (views)."""
        return BlockLists(
            self.grid,
            self.full_indptr,
            self.full_indices[: self.n_full],
            self.partial_indptr,
            self.partial_indices[: self.n_partial],
            self.bits[: self.n_patterns],
            self.bits_id[: self.n_partial],
        )

    def unpack(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return patterns as bool (len(ids), bq, bk)."""
        return bitops.unpack(self.bits[np.asarray(ids, np.intp)], self.grid.block_k)


def assemble(grid: Grid, keys: np.ndarray, ids: np.ndarray, bits: npt.NDArray[np.uint32]) -> BlockLists:
    """Build lists in normal form: the only way lists are made.

    Parameters
    ----------
    grid : Grid
    keys : int64 (n,)
        Ascending, distinct.
    ids : int32 or int64 (n,)
        A pattern of `bits`, or FULL.
    bits : uint32 (n_patterns, bq, words)
        In any order, repeated or unused as may be; elements outside the shape are ignored.

    Returns
    -------
    BlockLists
        PARTIAL blocks that turn out to see everything inside the shape are FULL, those that see nothing are gone, and
        patterns are distinct, all used, and zero outside the shape.
    """
    keys, ids, bits = _normal_patterns(grid, keys, ids, bits)
    if len(bits) > INT32_MAX:
        raise ValueError(f"the mask has {len(bits)} distinct patterns, more than int32 ids can name")
    full = ids == FULL
    full_indptr, full_indices = _compress(grid, keys[full])
    partial_indptr, partial_indices = _compress(grid, keys[~full])
    bits_id = ids[~full].astype(np.int32, copy=False)
    return BlockLists(grid, full_indptr, full_indices, partial_indptr, partial_indices, bits, bits_id)


def _normal_patterns(
    grid: Grid, keys: np.ndarray, ids: np.ndarray, bits: npt.NDArray[np.uint32]
) -> tuple[np.ndarray, np.ndarray, npt.NDArray[np.uint32]]:
    partial = np.flatnonzero(ids != FULL)
    # A pattern means something else where the shape cuts the block, so it is judged once per (pattern, edge class).
    pairs, pair_of = np.unique(ids[partial].astype(np.int64) * 4 + grid.edge_class(keys[partial]), return_inverse=True)
    inside = bitops.pack(grid.inside())[pairs % 4]
    cut = bits[pairs // 4] & inside
    is_full = (cut == inside).all(axis=(1, 2))
    stays = cut.any(axis=(1, 2)) & ~is_full
    distinct, order = bitops.dedupe(cut[stays])
    new_ids = np.where(is_full, FULL, ABSENT)
    new_ids[stays] = order
    ids = ids.copy()
    ids[partial] = new_ids[pair_of]
    if is_full.sum() + len(order) < len(pairs):
        kept = ids != ABSENT
        keys, ids = keys[kept], ids[kept]
    return keys, ids, distinct


def _compress(grid: Grid, keys: np.ndarray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    indptr = np.searchsorted(keys, np.arange(grid.rows + 1) * grid.nk)
    return indptr, (keys % max(grid.nk, 1)).astype(np.int32)


def entries(lists: BlockLists) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return the ascending keys of all listed blocks and their ids: the inverse of `assemble`."""
    full = _keys(lists.grid, lists.full_indptr, lists.full_indices)
    partial = _keys(lists.grid, lists.partial_indptr, lists.partial_indices)
    keys = np.concatenate([full, partial])
    ids = np.concatenate([np.full(len(full), FULL, np.int32), lists.bits_id[: len(partial)]])
    order = np.argsort(keys, kind="stable")  # two sorted runs: a merge
    return keys[order], ids[order]


def _keys(grid: Grid, indptr: npt.NDArray[np.int64], indices: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    rows = np.repeat(np.arange(grid.rows), np.diff(indptr))
    return rows * grid.nk + indices[: len(rows)]


def ragged_arange(starts: np.ndarray, counts: np.ndarray) -> npt.NDArray[np.int64]:
    """Concatenate ``arange(start, start + count)`` over all pairs."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - counts), counts)


def sorted_unique(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """np.unique for keys that come in sorted runs, where a merge beats its hash table by far."""
    ordered = np.sort(values, kind="stable")
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def take_groups(lists: BlockLists, groups: np.ndarray, batch: int, heads: int) -> BlockLists:
    """Gather heads, numbered ``b * H + h`` and repeated as may be, into a mask of ``batch * heads`` of them."""
    grid = dataclasses.replace(lists.grid, batch=batch, heads=heads)
    keys, ids = entries(lists)
    per_group = grid.nq * grid.nk
    starts, ends = np.searchsorted(keys, groups * per_group), np.searchsorted(keys, (groups + 1) * per_group)
    picked = ragged_arange(starts, ends - starts)
    moved = np.repeat((np.arange(len(groups)) - groups) * per_group, ends - starts)
    return assemble(grid, keys[picked] + moved, ids[picked], lists.bits)


def broadcast_groups(lists: BlockLists, batch: int, heads: int) -> BlockLists:
    """Repeat a mask whose batch and heads are 1 or the wanted number."""
    b = np.arange(batch) if lists.grid.batch > 1 else np.zeros(batch, np.int64)
    h = np.arange(heads) if lists.grid.heads > 1 else np.zeros(heads, np.int64)
    return take_groups(lists, (b[:, None] * lists.grid.heads + h).ravel(), batch, heads)


def transpose(lists: BlockLists) -> BlockLists:
    """Return the lists of the transposed mask: block column major, each pattern transposed."""
    grid = lists.grid.mT
    keys, ids = entries(lists)
    group, i, j = lists.grid.split(keys)
    keys = (group * grid.nq + j) * grid.nk + i
    order = np.argsort(keys, kind="stable")
    bits = bitops.build(
        len(lists.bits), grid.block_size, lambda part: bitops.unpack(lists.bits[part], grid.block_q).swapaxes(1, 2)
    )
    return assemble(grid, keys[order], ids[order], bits)
