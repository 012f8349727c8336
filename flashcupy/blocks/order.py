"""The order in which a GPU computes the rows of a mask: long ones first, so that none is left when others are done."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flashcupy.blocks.lists import BlockLists


def longest_first(lists: BlockLists, *, last_first: bool) -> npt.NDArray[np.int32]:
    """Return all rows, those with many blocks first.

    Rows of about as many blocks, within a quarter, keep their order, so that neighbours share what they read: that of
    their heads, and within a head ascending or, with `last_first`, descending.
    """
    grid = lists.grid
    by_head = np.arange(grid.rows).reshape(grid.groups, grid.nq)
    rows = (by_head[:, ::-1] if last_first else by_head).ravel()
    counts = np.diff(lists.full_indptr) + np.diff(lists.partial_indptr)
    return rows[np.argsort(-_classes(counts)[rows], kind="stable")].astype(np.int32)


def _classes(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Classes of counts, four for each power of two: see kernels_cu/lists/longest_first.cuh."""
    log = np.frexp(np.maximum(counts, 4).astype(np.float64))[1] - 1
    return np.where(counts < 4, counts, 4 * (log - 1) + (counts >> (log - 2) & 3))
