"""Blocks in which a query and a key bear the same id."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import bits as bitops
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.host import int_array
from flashcupy.blocks.lists import FULL, BlockLists, assemble, ragged_arange, sorted_unique


def from_ids(q_ids: Any, k_ids: Any, block_size: Any) -> BlockLists:
    """Build ``q_ids[b, i] == k_ids[b, j]``; ids (S,) or (B, S), in any order."""
    query = _ids("q_ids", q_ids)
    key = query if k_ids is None else _ids("k_ids", k_ids)
    if len(query) != len(key):
        raise ValueError(f"k_ids must have the batch size {len(query)} of q_ids, got {len(key)}")
    grid = Grid.make((query.shape[1], key.shape[1]), block_size, batch=len(query))
    query, key = _label(query, key)
    keys, single = _shared_blocks(grid, query, key)
    mixed = keys[~single]

    def same_id(chunk: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        batch, i, j = (part[:, None] for part in grid.split(chunk))
        rows = np.minimum(i * grid.block_q + np.arange(grid.block_q), grid.seqlen_q - 1)
        cols = np.minimum(j * grid.block_k + np.arange(grid.block_k), grid.seqlen_k - 1)
        return query[batch, rows][:, :, None] == key[batch, cols][:, None, :]

    parts = (mixed[part] for part in bitops.chunks(len(mixed), grid.block_q * grid.block_k))
    mixed, mixed_ids, bits = bitops.evaluate(grid, parts, same_id)
    ids = np.full(len(keys), FULL)
    ids[~single] = mixed_ids  # every block of the join sees something, so evaluate dropped none
    return assemble(grid, keys, ids, bits)


def _ids(name: str, ids: Any) -> npt.NDArray[np.int64]:
    array = int_array(name, ids)
    if array.ndim not in (1, 2):
        raise ValueError(f"{name} must be (S,) or (B, S), got shape {array.shape}")
    return np.atleast_2d(array)


def _label(query: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Replace ids by labels 0, 1, ... that batch entries do not share."""
    distinct, labels = np.unique(np.concatenate([query, key], axis=1), return_inverse=True)
    labels = labels.reshape(len(query), -1) + np.arange(len(query))[:, None] * len(distinct)
    return labels[:, : query.shape[1]], labels[:, query.shape[1] :]


def _incidences(labels: np.ndarray, block: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], np.ndarray]:
    """Return the distinct pairs (flat block, label), ordered by block, and whether the block has that label alone."""
    batch, seqlen = labels.shape
    n_blocks = -(-seqlen // block)
    blocks = np.arange(batch)[:, None] * n_blocks + np.arange(seqlen) // block
    n_labels = labels.max(initial=0) + 1
    pairs = sorted_unique((blocks * n_labels + labels).ravel())
    blocks, labels = np.divmod(pairs, n_labels)
    return blocks, labels, np.bincount(blocks, minlength=batch * n_blocks)[blocks] == 1


def _shared_blocks(grid: Grid, query: np.ndarray, key: np.ndarray) -> tuple[npt.NDArray[np.int64], np.ndarray]:
    """Join block rows and block columns on their labels: ascending keys, and which see a single label on both sides."""
    row, row_label, row_single = _incidences(query, grid.block_q)
    col, col_label, col_single = _incidences(key, grid.block_k)
    by_label = np.argsort(col_label, kind="stable")
    col, col_label, col_single = col[by_label], col_label[by_label], col_single[by_label]
    start = np.searchsorted(col_label, row_label)
    count = np.searchsorted(col_label, row_label, side="right") - start
    # Blocks that share several labels join several times, so duplicates go before the next piece of the join is made.
    keys, single = [np.empty(0, np.int64)], [np.empty(0, np.bool_)]
    cuts = np.searchsorted(np.cumsum(count), np.arange(0, count.sum(), bitops.CHUNK_ELEMENTS)[1:])
    for part in np.split(np.arange(len(row)), cuts):
        at = ragged_arange(start[part], count[part])
        source = np.repeat(part, count[part])
        joined = row[source] * grid.nk + col[at] % max(grid.nk, 1)
        distinct, first = np.unique(joined, return_index=True)
        keys.append(distinct)
        single.append(row_single[source[first]] & col_single[at[first]])
    # A block row cut in two may still name a block twice.
    distinct, first = np.unique(np.concatenate(keys), return_index=True)
    return distinct, np.concatenate(single)[first]
