"""The grid of blocks that a mask is laid out on: shape, block size, and how a block's key is made."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

BlockSize: TypeAlias = int | tuple[int, int]

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1


def check_block_size(block_size: Any) -> tuple[int, int]:
    """Return ``(bq, bk)`` from an int or a pair, or raise ValueError with the list of sizes."""
    try:
        sizes = tuple(map(operator.index, block_size)) if np.iterable(block_size) else (operator.index(block_size),) * 2
    except TypeError:
        sizes = ()
    if len(sizes) != 2 or not all(n in (16, 32, 64) or (n > 0 and n % 128 == 0) for n in sizes):
        raise ValueError(
            f"block_size must be 16, 32, 64, 128 or a multiple of 128, as an int or a (bq, bk) pair, got {block_size!r}"
        )
    return sizes


def check_count(name: str, value: Any, minimum: int = 0) -> int:
    """Return `value` as an int of at least `minimum`, or raise naming the argument."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {value!r}") from None
    if count < minimum:
        raise ValueError(f"{name} must be an int >= {minimum}, got {count}")
    return count


def batch_and_heads(name: str, leading: tuple[int, ...]) -> tuple[int, int]:
    """Read the leading dims of an array, ``()``, ``(H,)`` or ``(B, H)``, as ``(B, H)``."""
    if len(leading) > 2:
        raise ValueError(f"{name} must have at most two leading dims, (batch, heads), got {leading}")
    batch, heads = (1, 1, *leading)[-2:]
    return batch, heads


@dataclasses.dataclass(frozen=True)
class Grid:
    """Shape of a mask in elements and the size of its blocks.

    Attributes
    ----------
    batch, heads : int
    seqlen_q, seqlen_k : int
        Elements; the last block row and column may be ragged.
    block_q, block_k : int
        Rows and columns of a block.
    """

    batch: int
    heads: int
    seqlen_q: int
    seqlen_k: int
    block_q: int
    block_k: int

    @classmethod
    def make(cls, shape: Any, block_size: Any, batch: Any = 1, heads: Any = 1) -> Grid:
        """Validate everything and return the grid; `shape` is ``(Sq, Sk)``."""
        if not np.iterable(shape) or len(tuple(shape)) != 2:
            raise ValueError(f"shape must be (Sq, Sk), got {shape!r}")
        seqlen_q, seqlen_k = (check_count(f"shape[{axis}]", n) for axis, n in enumerate(shape))
        batch, heads = check_count("batch", batch), check_count("heads", heads)
        grid = cls(batch, heads, seqlen_q, seqlen_k, *check_block_size(block_size))
        if max(grid.nq, grid.nk) > INT32_MAX or grid.cells > INT64_MAX:
            raise ValueError(f"shape {grid.shape} has more blocks of {grid.block_size} than int32 indices can name")
        return grid

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, query rows, key columns."""
        return self.batch, self.heads, self.seqlen_q, self.seqlen_k

    @property
    def block_size(self) -> tuple[int, int]:
        """Rows and columns of a block."""
        return self.block_q, self.block_k

    @property
    def nq(self) -> int:
        """Block rows of one head."""
        return -(-self.seqlen_q // self.block_q)

    @property
    def nk(self) -> int:
        """Block columns."""
        return -(-self.seqlen_k // self.block_k)

    @property
    def groups(self) -> int:
        """Heads over the whole batch."""
        return self.batch * self.heads

    @property
    def rows(self) -> int:
        """Block rows over all heads: the length of an indptr, less one."""
        return self.groups * self.nq

    @property
    def cells(self) -> int:
        """Blocks over all heads, listed or not."""
        return self.rows * self.nk

    @property
    def mT(self) -> Grid:  # noqa: N802  (the array API's name)
        """The grid of the transposed mask."""
        return dataclasses.replace(
            self, seqlen_q=self.seqlen_k, seqlen_k=self.seqlen_q, block_q=self.block_k, block_k=self.block_q
        )

    @property
    def one_head(self) -> Grid:
        """The same grid with batch and heads 1."""
        return dataclasses.replace(self, batch=1, heads=1)

    def row_of(self, keys: np.ndarray) -> npt.NDArray[np.int64]:
        """Flat block row ``(b * H + h) * nq + i`` of each key."""
        return keys // max(self.nk, 1)

    def split(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return group ``b * H + h``, block row i and block column j of each key."""
        rows, j = np.divmod(keys, max(self.nk, 1))
        group, i = np.divmod(rows, max(self.nq, 1))
        return group, i, j

    def heights(self) -> npt.NDArray[np.int64]:
        """Element rows inside the shape, per block row (nq,)."""
        return np.minimum(self.block_q, self.seqlen_q - np.arange(self.nq) * self.block_q)

    def widths(self) -> npt.NDArray[np.int64]:
        """Element columns inside the shape, per block column (nk,)."""
        return np.minimum(self.block_k, self.seqlen_k - np.arange(self.nk) * self.block_k)

    def edge_class(self, keys: np.ndarray) -> npt.NDArray[np.int64]:
        """Say how the shape cuts each block: 0 whole, +1 last block column, +2 last block row."""
        _, i, j = self.split(keys)
        return 2 * (i == self.nq - 1) + (j == self.nk - 1)

    def inside(self) -> npt.NDArray[np.bool_]:
        """Elements inside the shape for a block of each edge class, bool (4, bq, bk)."""
        rows = np.arange(self.block_q) < np.array([self.block_q, self.seqlen_q - (self.nq - 1) * self.block_q])[:, None]
        cols = np.arange(self.block_k) < np.array([self.block_k, self.seqlen_k - (self.nk - 1) * self.block_k])[:, None]
        return (rows[:, None, :, None] & cols[None, :, None, :]).reshape(4, self.block_q, self.block_k)
