"""Constructors of BlockMask from lists, tables, predicates and sparse matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from flashcupy.blocks import build, convert, placing, topk
from flashcupy.blocks.grid import BlockSize, Grid, check_count
from flashcupy.blocks.lists import BlockLists, Lists

if TYPE_CHECKING:
    from typing_extensions import Self

    from flashcupy.block_mask import BlockMask


class ListConstructors:
    """The part of BlockMask that builds it from what callers have."""

    if TYPE_CHECKING:
        _buffers: Any

        @property
        def _on_host(self) -> bool: ...
        @property
        def _fixed(self) -> bool: ...
        def __init__(self, lists: Lists, buffers: Any = None) -> None: ...
        def overwrite(self, lists: BlockLists) -> Self: ...
        def _rewritten(self) -> Self: ...
        def host_lists(self) -> BlockLists: ...

    @classmethod
    def _into(cls, lists: BlockLists, out: Self | None) -> Self:
        if out is None:
            return cls(lists)
        _require_mask(out)
        return out.overwrite(lists)

    @classmethod
    def _built_there(cls, constructor: str, out: Self | None, *sources: Any) -> Self:
        build = getattr(placing.builder(), constructor)
        if out is None:
            made = build(None, *sources)
            return cls(made.lists, made)
        _require_mask(out)
        if out._on_host or not out._fixed:
            kind = "a mask on the host" if out._on_host else "an immutable one"
            raise ValueError(f"out must be a mask made by BlockMask.empty on the device of the arrays, got {kind}")
        build(out._buffers, *sources)
        return out._rewritten()

    @classmethod
    def from_blocks(
        cls, blocks: npt.ArrayLike, shape: tuple[int, int], *, block_size: BlockSize = 64, out: Self | None = None
    ) -> Self:
        """Make a mask whose blocks are seen wholly or not at all.

        Parameters
        ----------
        blocks : bool array (nq, nk), (H, nq, nk) or (B, H, nq, nk)
            True where the block is visible; nq = ceil(Sq / bq), nk = ceil(Sk / bk).
        shape : (int, int)
            Sq and Sk, in elements.
        block_size : int or (int, int)
            Rows and columns of a block: 16, 32, 64, 128 or a multiple of 128.
        out : BlockMask, optional
            A mask made by `empty`, rewritten in place and returned. Lists of blocks on the host may go to a mask on a
            device, which is waited for; not while a graph is captured.

        Raises
        ------
        TypeError
            If `blocks` is not bool.
        ValueError
            If shapes disagree, or if `out` is too small for blocks on the host; `out` is then untouched.

        Examples
        --------
        >>> import numpy as np
        >>> from flashcupy.block_mask import BlockMask
        >>> mask = BlockMask.from_blocks(np.eye(4, dtype=bool), (256, 256))
        >>> mask.full_indices
        array([0, 1, 2, 3], dtype=int32)
        """
        if placing.on_device(blocks):
            return cls._built_there("from_blocks", out, blocks, shape, block_size)
        return cls._into(build.from_blocks(blocks, shape, block_size), out)

    @classmethod
    def from_dense(cls, mask: npt.ArrayLike, *, block_size: BlockSize = 64, out: Self | None = None) -> Self:
        """Make a mask from one bool per score.

        Parameters
        ----------
        mask : bool array (Sq, Sk), (H, Sq, Sk) or (B, H, Sq, Sk)
            True where the key is visible.
        block_size, out
            As in `from_blocks`.

        Raises
        ------
        TypeError, ValueError
            As in `from_blocks`.

        Examples
        --------
        >>> import numpy as np
        >>> from flashcupy.block_mask import BlockMask
        >>> dense = np.tri(100, 200, dtype=bool)
        >>> bool((BlockMask.from_dense(dense, block_size=32).to_dense() == dense).all())
        True
        """
        if placing.on_device(mask):
            return cls._built_there("from_dense", out, mask, block_size)
        return cls._into(build.from_dense(mask, block_size), out)

    @classmethod
    def from_csr(
        cls,
        indptr: npt.ArrayLike,
        indices: npt.ArrayLike,
        shape: tuple[int, int],
        *,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        partial: npt.ArrayLike | None = None,
        bits: npt.ArrayLike | None = None,
        out: Self | None = None,
    ) -> Self:
        """Make a mask from compressed block rows.

        Parameters
        ----------
        indptr : int array (B * H * nq + 1,)
            Where each block row ``(b * H + h) * nq + i`` starts in `indices`.
        indices : int array (nnz,)
            Visible block columns, strictly ascending in each row.
        shape, block_size, out
            As in `from_blocks`.
        batch, heads : int
            B and H.
        partial : bool array (nnz,), optional
            Marks the blocks of which only some elements are visible; the others are seen wholly.
        bits : uint32 array (n_partial, bq, ceil(bk / 32)) or bool array (n_partial, bq, bk)
            Their elements, in the order of `indices`; column c of a row is bit c % 32 of word c // 32. Goes with
            `partial`.

        Raises
        ------
        TypeError, ValueError
            If a dtype is wrong, `indptr` does not rise from 0 to nnz, an index is out of range or order, shapes
            disagree, one of `partial` and `bits` is missing, or `out` is too small; `out` is then untouched.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.from_csr([0, 1, 3], [0, 0, 1], (128, 128)).density
        0.75
        """
        lists = build.from_csr(
            indptr, indices, shape, block_size=block_size, batch=batch, heads=heads, partial=partial, bits=bits
        )
        return cls._into(lists, out)

    @classmethod
    def from_ids(
        cls,
        ids: npt.ArrayLike,
        shape: tuple[int, int],
        *,
        counts: npt.ArrayLike | None = None,
        block_size: BlockSize = 64,
        out: Self | None = None,
    ) -> Self:
        """Make a mask from a table of block ids, as selection models give it.

        Parameters
        ----------
        ids : int array (nq, K), (H, nq, K) or (B, H, nq, K)
            Visible block columns of each block row, in any order; a negative id is an unused slot.
        shape, block_size, out
            As in `from_blocks`.
        counts : int array, shape of `ids` without K, optional
            How many slots of each row count; what lies behind them is not looked at.

        Raises
        ------
        TypeError
            If `ids` or `counts` is not of integers.
        ValueError
            If an id, on the host, is out of range or repeated in its row, or shapes disagree. On a device such ids are
            left out, and `check` tells.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> mask = BlockMask.from_ids([[1, 0], [1, -1]], (128, 128))
        >>> mask.full_indptr, mask.full_indices
        (array([0, 2, 3]), array([0, 1, 1], dtype=int32))
        """
        if placing.on_device(ids, counts):
            return cls._built_there("from_ids", out, ids, shape, counts, block_size)
        return cls._into(build.from_ids(ids, shape, counts, block_size), out)

    @classmethod
    def from_topk(
        cls,
        scores: npt.ArrayLike,
        k: int,
        shape: tuple[int, int],
        *,
        block_size: BlockSize = 64,
        allowed: npt.ArrayLike | None = None,
        include: npt.ArrayLike | None = None,
        out: Self | None = None,
    ) -> Self:
        """Make a mask of the k best-scored blocks of each block row.

        Parameters
        ----------
        scores : real array (nq, nk), (H, nq, nk) or (B, H, nq, nk)
            The highest win, ties go to the lower block; -inf and NaN are never chosen.
        k : int
            Blocks per row at most; fewer where fewer may be chosen.
        shape, block_size, out
            As in `from_blocks`.
        allowed : bool array, broadcastable to `scores`, optional
            Blocks that may be chosen at all.
        include : bool array, broadcastable to `scores`, optional
            Blocks chosen first, whatever their score, where `allowed` permits. They count in k; if a row has more than
            k of them, the best-scored stay.

        Raises
        ------
        TypeError, ValueError
            As in `from_blocks`, and if k is negative.

        Examples
        --------
        >>> import numpy as np
        >>> from flashcupy.block_mask import BlockMask
        >>> scores = np.array([[0.1, 0.9, 0.5], [0.7, 0.7, np.nan]])
        >>> BlockMask.from_topk(scores, 1, (128, 192)).full_indices
        array([1, 0], dtype=int32)
        """
        if placing.on_device(scores, allowed, include):
            return cls._built_there("from_topk", out, scores, k, shape, block_size, allowed, include)
        lists = topk.from_topk(scores, k, shape, block_size=block_size, allowed=allowed, include=include)
        return cls._into(lists, out)

    @classmethod
    def from_predicate(
        cls,
        f: Callable[..., Any],
        shape: tuple[int, int],
        *,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        within: BlockMask | None = None,
        device: str | None = None,
    ) -> Self:
        """Make a mask from a function of the indices, evaluated in chunks of a few MB.

        Parameters
        ----------
        f : callable
            ``f(b, h, i, j) -> bool array``: batch, head, query row and key column as int64 arrays that broadcast
            against each other to (blocks, bq, bk). It must work element by element; indices are inside the shape.
        shape, block_size
            As in `from_blocks`.
        batch, heads : int
            B and H.
        within : BlockMask, optional
            A mask of the same shape and block size (its B and H may be 1): f is called on its blocks only, and the
            result is ``f & within``. Without it, f is evaluated on all B * H * Sq * Sk elements.
        device : str, optional
            Where the mask lives: "cpu", or a CUDA device such as "cuda:0". f is evaluated on the host.

        Raises
        ------
        TypeError
            If f returns anything but bool.
        ValueError
            If f returns another shape, or `within` does not fit.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> window = BlockMask.sliding_window((1000, 1000), 100, 0)
        >>> dilated = BlockMask.from_predicate(lambda b, h, i, j: (i - j) % 2 == 0, (1000, 1000), within=window)
        >>> int(dilated.to_dense()[0, 0, 500].sum())
        51
        """
        placing.check_device(device)
        grid = Grid.make(shape, block_size, batch, heads)
        lists = build.from_predicate(f, grid, None if within is None else _candidates(within, grid))
        return cls(placing.placed(lists, device))

    @classmethod
    def from_scipy(cls, m: Any, *, block_size: BlockSize | None = None) -> Self:
        """Make a mask from sparse matrices: what is stored and not zero is visible.

        Parameters
        ----------
        m : scipy.sparse matrix or array (Sq, Sk), or a nested list of them
            Any format. ``[[m00, m01], [m10, m11]]`` gives batch rows of heads.
        block_size : int or (int, int), optional
            Default: that of a BSR matrix if it is an allowed size, else 64.

        Raises
        ------
        TypeError
            If an entry is not a sparse matrix.
        ValueError
            If the list is ragged or shapes differ.
        ImportError
            If SciPy is missing.

        Examples
        --------
        >>> import scipy.sparse
        >>> from flashcupy.block_mask import BlockMask
        >>> band = scipy.sparse.diags_array([1.0, 1.0, 1.0], offsets=[-1, 0, 1], shape=(256, 256))
        >>> BlockMask.from_scipy(band).stats()["partial"]
        10
        """
        return cls(convert.from_scipy(m, block_size))

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int],
        *,
        capacity: int,
        partial_capacity: int = 0,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        transposed: bool = True,
        device: str | None = None,
    ) -> Self:
        """Make a mask that sees nothing, with lists of fixed address for constructors to write to (``out=``).

        Its index arrays are as long as the capacity; what lies behind ``indptr[-1]`` is padding. On a device it
        takes `check` to tell that a capacity is too small: results of rows that it has no room for are NaN.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            As in `from_predicate`.
        capacity, partial_capacity : int
            FULL and PARTIAL blocks that fit, over all rows and heads.
        transposed : bool
            Keep the lists that the backward reads at fixed addresses too, as a graph of a backward needs.

        Raises
        ------
        ValueError
            If a capacity is negative.

        Examples
        --------
        >>> import numpy as np
        >>> from flashcupy.block_mask import BlockMask
        >>> mask = BlockMask.empty((128, 128), capacity=4)
        >>> _ = BlockMask.from_blocks(np.eye(2, dtype=bool), (128, 128), out=mask)
        >>> mask.full_indptr
        array([0, 1, 2])
        """
        buffers = placing.empty_buffers(
            device,
            Grid.make(shape, block_size, batch, heads),
            check_count("capacity", capacity),
            check_count("partial_capacity", partial_capacity),
            transposed,
        )
        return cls(buffers.lists, buffers)


def _require_mask(out: Any) -> None:
    if not isinstance(out, ListConstructors):
        raise TypeError(f"out must be a BlockMask made by BlockMask.empty, got {type(out).__name__}")


def _candidates(within: BlockMask, grid: Grid) -> BlockLists:
    if not isinstance(within, ListConstructors):
        raise TypeError(f"within must be a BlockMask, got {type(within).__name__}")
    lists = within.host_lists()
    own = lists.grid
    if (own.one_head != grid.one_head) or own.batch not in (1, grid.batch) or own.heads not in (1, grid.heads):
        raise ValueError(
            f"within must be a mask of shape {grid.shape} (batch and heads may be 1) and block_size {grid.block_size}, "
            f"got {own.shape} and {own.block_size}"
        )
    return lists
