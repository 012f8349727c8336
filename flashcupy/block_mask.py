"""BlockMask: which blocks of the score matrix are visited, and which of their elements are visible."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import algebra, check, convert, draw, recut
from flashcupy.blocks.buffers import Buffers
from flashcupy.blocks.constructors import ListConstructors
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.host import check_device
from flashcupy.blocks.lists import BlockLists, take_groups, transpose
from flashcupy.patterns import PatternConstructors

_PICKLE_VERSION = 1


class BlockMask(ListConstructors, PatternConstructors):
    """Lists of the visible blocks of each block row of the score matrix, for block-sparse attention.

    A block is FULL (all its elements inside the shape are visible: no mask is evaluated), PARTIAL (its visible elements
    are a bit pattern) or not listed (never visited). Memory is O(listed blocks). Masks are immutable, and always in
    normal form: two masks that see the same elements have the same lists. Coordinates are absolute.

    Make one with a constructor: `from_blocks`, `from_dense`, `from_csr`, `from_ids`, `from_topk`, `from_predicate`,
    `from_scipy`, `empty`, or a pattern: `causal`, `sliding_window`, `global_tokens`, `prefix_lm`, `document`, `random`,
    `bigbird`. Combine with ``&``, ``|``, ``~``; look at it with ``print``, `plot` and `stats`. ``==`` and hash go by
    identity: see `equals`.

    Rows of the lists are flat, ``(b * H + h) * nq + i`` for block row i, and nq = ceil(Sq / bq).

    Examples
    --------
    >>> from flashcupy.block_mask import BlockMask
    >>> window = BlockMask.sliding_window((1024, 1024), left=256, right=0)
    >>> sinks = BlockMask.global_tokens((1024, 1024), 4) & BlockMask.causal((1024, 1024))
    >>> mask = window | sinks
    >>> mask
    BlockMask(shape=(1, 1, 1024, 1024), block_size=(64, 64), device='cpu')
    >>> mask.num_block_rows, mask.stats()["full"], mask.stats()["partial"]
    (16, 42, 39)
    """

    __array_ufunc__: ClassVar[None] = None

    def __init__(self, lists: BlockLists, buffers: Buffers | None = None) -> None:
        if not isinstance(lists, BlockLists):
            raise TypeError("BlockMask is made by its constructors, such as BlockMask.from_blocks or BlockMask.causal")
        self._lists = lists
        self._buffers = buffers
        self._transposed = None if buffers is None else buffers.transposed
        self._lock, self._copy_lock = threading.Lock(), threading.Lock()
        self._device_copies: dict[Any, Any] = {}

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, query rows and key columns (B, H, Sq, Sk); B and H may be 1 for all."""
        return self._lists.grid.shape

    @property
    def block_size(self) -> tuple[int, int]:
        """Rows and columns of a block (bq, bk)."""
        return self._lists.grid.block_size

    @property
    def num_block_rows(self) -> int:
        """Block rows of one head, nq = ceil(Sq / bq)."""
        return self._lists.grid.nq

    @property
    def num_block_cols(self) -> int:
        """Block columns, nk = ceil(Sk / bk)."""
        return self._lists.grid.nk

    @property
    def device(self) -> str:
        """Where the lists are: "cpu"."""
        return "cpu"

    @property
    def capacity(self) -> int | None:
        """FULL blocks that fit; None for a mask that was not made by `empty`."""
        return None if self._buffers is None else self._buffers.capacity

    @property
    def partial_capacity(self) -> int | None:
        """PARTIAL blocks that fit; None for a mask that was not made by `empty`."""
        return None if self._buffers is None else self._buffers.partial_capacity

    @property
    def full_indptr(self) -> npt.NDArray[np.int64]:
        """Where each row starts in `full_indices`, int64 (B * H * nq + 1,)."""
        return self._lists.full_indptr

    @property
    def full_indices(self) -> npt.NDArray[np.int32]:
        """Columns of FULL blocks, int32, ascending and unique in a row."""
        return self._lists.full_indices

    @property
    def partial_indptr(self) -> npt.NDArray[np.int64]:
        """Where each row starts in `partial_indices`, int64 (B * H * nq + 1,)."""
        return self._lists.partial_indptr

    @property
    def partial_indices(self) -> npt.NDArray[np.int32]:
        """Columns of PARTIAL blocks, int32, ascending and unique in a row."""
        return self._lists.partial_indices

    @property
    def bits(self) -> npt.NDArray[np.uint32]:
        """Distinct patterns, uint32 (n, bq, ceil(bk / 32)): column c of a row is bit c % 32 of word c // 32."""
        return self._lists.bits

    @property
    def bits_id(self) -> npt.NDArray[np.int32]:
        """The pattern of each PARTIAL block, int32, in the order of `partial_indices`."""
        return self._lists.bits_id

    def unpack(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return patterns as bool elements.

        Parameters
        ----------
        ids : int array (n,)
            Numbers of patterns, as in `bits_id`.

        Returns
        -------
        bool array (n, bq, bk)
            False outside the shape.

        Raises
        ------
        IndexError
            If there is no such pattern.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.causal((128, 128)).unpack([0])[0, :3, :4].astype(int)
        array([[1, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 0]])
        """
        return self._lists.unpack(ids)

    @property
    def lists(self) -> BlockLists:
        """The six arrays together."""
        return self._lists

    def device_copy(self, key: Hashable, copy: Callable[[], Any]) -> Any:
        """What `copy` made of the lists for a device, kept until a rewrite; for backends."""
        with self._copy_lock:
            copies = self._device_copies  # a rewrite meanwhile starts anew, and must not get what was copied before it
            if key not in copies:
                copies[key] = copy()
            return copies[key]

    @property
    def transposed(self) -> BlockLists:
        """Lists of the transposed mask, in the same layout: the queries that see each key block.

        Built at first use and kept; a rewrite through ``out=`` renews them. Threads may share the mask.
        """
        with self._lock:
            if self._transposed is None:
                self._transposed = transpose(self._lists)
            return self._transposed

    @property
    def mT(self) -> BlockMask:  # noqa: N802  (the array API's name)
        """The mask (B, H, Sk, Sq) with queries and keys exchanged; of a mask made by `empty`, as it is now."""
        if self._buffers is not None:
            return BlockMask(transpose(self._lists))
        result = BlockMask(self.transposed)
        result._transposed = self._lists
        return result

    def _rewrite(self, lists: BlockLists) -> BlockMask:
        if self._buffers is None:
            raise ValueError("out must be a mask made by BlockMask.empty, got an immutable one")
        with self._lock:
            self._buffers.rewrite(lists)
            self._transposed = self._buffers.transposed
            self._device_copies = {}
        return self

    def __and__(self, other: BlockMask) -> BlockMask:
        if not isinstance(other, BlockMask):
            return NotImplemented
        self._check_same_grid(other, "&")
        return BlockMask(algebra.intersection(self._lists, other._lists))

    def __or__(self, other: BlockMask) -> BlockMask:
        if not isinstance(other, BlockMask):
            return NotImplemented
        self._check_same_grid(other, "|")
        return BlockMask(algebra.union(self._lists, other._lists))

    def __invert__(self) -> BlockMask:
        return BlockMask(algebra.complement(self._lists))

    def _check_same_grid(self, other: BlockMask, operator: str) -> None:
        if self._lists.grid != other._lists.grid:
            raise ValueError(
                f"{operator} needs masks of one shape and block_size, got {self.shape} in {self.block_size} blocks "
                f"and {other.shape} in {other.block_size} blocks"
            )

    def __getitem__(self, index: tuple[int | slice, int | slice]) -> BlockMask:
        """Return ``mask[b, h]`` as a mask of four dims; b and h are ints or slices."""
        if not isinstance(index, tuple) or len(index) != 2:
            raise TypeError(f"a BlockMask is indexed as mask[b, h], got mask[{index!r}]")
        batch, heads = (self._pick(n, at) for n, at in zip(self.shape, index, strict=False))
        groups = (batch[:, None] * self.shape[1] + heads).ravel()
        return BlockMask(take_groups(self._lists, groups, len(batch), len(heads)))

    @staticmethod
    def _pick(n: int, index: int | slice) -> npt.NDArray[np.int64]:
        try:
            return np.atleast_1d(np.arange(n)[index if isinstance(index, slice) else operator.index(index)])
        except TypeError:
            raise TypeError(f"a BlockMask is indexed by ints and slices, got {index!r}") from None

    def rows(self, start: int, stop: int) -> BlockMask:
        """Return element rows ``start <= i < stop`` as a mask of its own; columns keep their coordinates.

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= Sq; neither needs to be a multiple of the block size.

        Returns
        -------
        BlockMask
            Shape (B, H, stop - start, Sk), same block size.

        Raises
        ------
        ValueError
            If the range does not lie in the mask.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> shifted = BlockMask.sliding_window((64, 128), None, 40, align="top-left")
        >>> BlockMask.causal((128, 128)).rows(40, 104).equals(shifted)
        True
        """
        return BlockMask(recut.rows(self._lists, start, stop))

    def with_block_size(self, block_size: int | tuple[int, int]) -> BlockMask:
        """Return the same elements cut into blocks of another size.

        Parameters
        ----------
        block_size : int or (int, int)
            16, 32, 64, 128 or a multiple of 128.

        Raises
        ------
        ValueError
            If the size is not allowed.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.causal((256, 256)).with_block_size(128).equals(BlockMask.causal((256, 256), block_size=128))
        True
        """
        return BlockMask(recut.with_block_size(self._lists, block_size))

    def equals(self, other: BlockMask) -> bool:
        """Tell whether both masks have one shape and block size and see the same elements; O(blocks)."""
        if not isinstance(other, BlockMask):
            raise TypeError(f"other must be a BlockMask, got {type(other).__name__}")
        return check.equal(self._lists, other._lists)

    @property
    def density(self) -> float:
        """Fraction of all blocks that are visited, FULL or PARTIAL; 0.0 for a mask without blocks."""
        return check.density(self._lists)

    def stats(self) -> dict[str, int | float]:
        """Return figures about the mask.

        Returns
        -------
        dict
            ``blocks`` in all, of these ``full``, ``partial`` and ``empty``; ``density`` in blocks; ``element_density``;
            ``visited``, the scores in visited blocks over the mask's own batch and heads: a forward with head_dim D
            computes 4 * D * visited FLOPs; ``patterns`` stored; ``bytes`` of the lists; ``longest_row`` and
            ``longest_column``, the most blocks in one, which bound how evenly the forward and the gradients of keys
            can be spread over processors; ``row_imbalance`` and ``column_imbalance``, these over the mean.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> stats = BlockMask.causal((128, 128)).stats()
        >>> stats["full"], stats["partial"], stats["empty"], stats["element_density"]
        (1, 2, 1, 0.50390625)
        """
        return check.stats(self._lists)

    def check(self) -> None:
        """Validate every invariant of the lists; ValueError names the first that is broken."""
        check.check(self._lists, self._transposed)

    def to_dense(self) -> npt.NDArray[np.bool_]:
        """Return one bool per score (B, H, Sq, Sk): the only method that needs memory for that."""
        return convert.to_dense(self._lists)

    def to_device(self, device: str) -> BlockMask:
        """Return itself for "cpu"; UnsupportedError for a CUDA device: calls there copy the lists by themselves."""
        check_device(device)
        return self

    def to_scipy(self, format: str | None = None) -> Any:
        """Return the mask as sparse matrices of bool.

        Parameters
        ----------
        format : str, optional
            Any of scipy.sparse. Default: "bsr" if the blocks divide the shape, else "csr".

        Returns
        -------
        scipy.sparse array (Sq, Sk)
            For a mask with B = H = 1; otherwise the nested list ``[[m for each head] for each batch entry]``.

        Raises
        ------
        ValueError
            If "bsr" is asked for and the blocks do not divide the shape.
        ImportError
            If SciPy is missing.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.causal((100, 100)).to_scipy().nnz
        5050
        """
        return convert.to_scipy(self._lists, format)

    def plot(self, ax: Any = None, *, batch: int = 0, head: int = 0) -> Any:
        """Draw the blocks of one head in element coordinates: empty ones white, PARTIAL ones half dark, FULL ones dark.

        Large masks are drawn at a lower resolution, as dark as they are dense; the score matrix is never built.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Default: the axes of a new figure.
        batch, head : int
            Which entry.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        IndexError, ImportError
            If there is no such entry; if matplotlib is missing.
        """
        return draw.plot(self[batch, head]._lists, ax)

    def __str__(self) -> str:
        return draw.text(self._lists)

    def __repr__(self) -> str:
        return f"BlockMask(shape={self.shape}, block_size={self.block_size}, device={self.device!r})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            "a BlockMask does not turn into an array by itself, which takes Sq x Sk elements: call to_dense()"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, because a mask made by `empty` comes out as it is now and does not follow later rewrites.
        arrays = {name: array.copy() for name, array in self._lists.trimmed().arrays().items()}
        return _unpickle, ({"version": _PICKLE_VERSION, "shape": self.shape, "block_size": self.block_size, **arrays},)


def _unpickle(state: dict[str, Any]) -> BlockMask:
    version = state.pop("version", None)
    if version != _PICKLE_VERSION:
        raise ValueError(f"a pickled BlockMask must be of version {_PICKLE_VERSION}, got {version}")
    batch, heads, *shape = state.pop("shape")
    grid = Grid.make(shape, state.pop("block_size"), batch, heads)
    return BlockMask(BlockLists(grid, **state))
