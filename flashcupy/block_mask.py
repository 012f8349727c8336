"""BlockMask: which blocks of the score matrix are visited, and which of their elements are visible."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import algebra, check, placing, recut
from flashcupy.blocks.buffers import require_room
from flashcupy.blocks.constructors import ListConstructors
from flashcupy.blocks.grid import Grid
from flashcupy.blocks.lists import BlockLists, Lists, take_groups, transpose
from flashcupy.blocks.views import MaskViews
from flashcupy.patterns import PatternConstructors

_PICKLE_VERSION = 1


class BlockMask(ListConstructors, PatternConstructors, MaskViews):
    """Lists of the visible blocks of each block row of the score matrix, for block-sparse attention.

    A block is FULL (all its elements inside the shape are visible: no mask is evaluated), PARTIAL (its visible elements
    are a bit pattern) or not listed (never visited). Memory is O(listed blocks). Masks are immutable, and on the host
    always in normal form: two masks that see the same elements have the same lists. Coordinates are absolute.

    Make one with a constructor: `from_blocks`, `from_dense`, `from_csr`, `from_ids`, `from_topk`, `from_predicate`,
    `from_scipy`, `empty`, or a pattern: `causal`, `sliding_window`, `global_tokens`, `prefix_lm`, `document`, `random`,
    `bigbird`. Combine with ``&``, ``|``, ``~``; look at it with ``print``, `plot` and `stats`. ``==`` and hash go by
    identity: see `equals`.

    Rows of the lists are flat, ``(b * H + h) * nq + i`` for block row i, and nq = ceil(Sq / bq).

    A mask lives on the host, or on the device of the arrays it was made from. There constructors only launch kernels,
    in the order of the current stream; the lists are arrays of the device, padded behind ``indptr[-1]``, and each
    PARTIAL block has a pattern of its own. Methods that copy the lists to the host, and wait for that, say so. A mask
    of the host serves calls on a device as well: its lists are copied there once.

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

    def __init__(self, lists: Lists, buffers: Any = None) -> None:
        if not isinstance(lists, Lists):
            raise TypeError("BlockMask is made by its constructors, such as BlockMask.from_blocks or BlockMask.causal")
        # BlockLists on the host, DeviceLists on a device: arrays of the same names.
        self._lists: Any = lists
        self._buffers = buffers
        self._transposed: Any = None if buffers is None else buffers.transposed
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
        """Where the lists are: "cpu", or a CUDA device such as "cuda:0"."""
        return placing.HOST if self._on_host else self._lists.device.name

    @property
    def _on_host(self) -> bool:
        return isinstance(self._lists, BlockLists)

    @property
    def _fixed(self) -> bool:
        """Whether it was made by `empty`."""
        return self._buffers is not None and self._buffers.fixed

    def host_lists(self) -> BlockLists:
        """The lists on the host; of a mask on a device a copy in normal form, for which it is waited.

        Raises
        ------
        ValueError
            If a capacity has no room for all blocks of a mask on a device.
        """
        return self._lists if self._on_host else self._lists.to_host()

    def _like_this(self, lists: BlockLists) -> BlockMask:
        return BlockMask(placing.placed(lists, self.device))

    @property
    def capacity(self) -> int | None:
        """FULL blocks that fit; None for a mask that was not made by `empty`."""
        return self._buffers.capacity if self._fixed else None

    @property
    def partial_capacity(self) -> int | None:
        """PARTIAL blocks that fit; None for a mask that was not made by `empty`."""
        return self._buffers.partial_capacity if self._fixed else None

    @property
    def full_indptr(self) -> Any:
        """Where each row starts in `full_indices`, int64 (B * H * nq + 1,)."""
        return self._lists.full_indptr

    @property
    def full_indices(self) -> Any:
        """Columns of FULL blocks, int32, ascending and unique in a row."""
        return self._lists.full_indices

    @property
    def partial_indptr(self) -> Any:
        """Where each row starts in `partial_indices`, int64 (B * H * nq + 1,)."""
        return self._lists.partial_indptr

    @property
    def partial_indices(self) -> Any:
        """Columns of PARTIAL blocks, int32, ascending and unique in a row."""
        return self._lists.partial_indices

    @property
    def bits(self) -> Any:
        """Patterns, uint32 (n, bq, ceil(bk / 32)), on the host distinct: column c is bit c % 32 of word c // 32."""
        return self._lists.bits

    @property
    def bits_id(self) -> Any:
        """The pattern of each PARTIAL block, int32, in the order of `partial_indices`."""
        return self._lists.bits_id

    def unpack(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return patterns as bool elements; waits for a mask on a device.

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
        return self.host_lists().unpack(ids)

    @property
    def lists(self) -> Any:
        """The six arrays together: `BlockLists`, or on a device `flashcupy.cuda.device_lists.DeviceLists`."""
        return self._lists

    def device_copy(self, key: Hashable, copy: Callable[[], Any]) -> Any:
        """What `copy` made of the lists for a device, kept until a rewrite; for backends."""
        with self._copy_lock:
            copies = self._device_copies  # a rewrite meanwhile starts anew, and must not get what was copied before it
            if key not in copies:
                copies[key] = copy()
            return copies[key]

    @property
    def transposed(self) -> Any:
        """Lists of the transposed mask, in the same layout: the queries that see each key block.

        Built with the mask on a device, at first use on the host, and kept; a rewrite through ``out=`` renews them.
        Threads may share the mask. Of masks on a device that were not made there, or by ``empty(transposed=False)``,
        they are built at first use, for which the device is waited for.
        """
        if self._buffers is not None and not self._on_host:
            return self._buffers.columns()
        with self._lock:
            if self._transposed is None:
                self._transposed = self._new_transposed()
            return self._transposed

    def _new_transposed(self) -> Any:
        if self._on_host:
            return transpose(self._lists)
        return placing.builder().upload(transpose(self.host_lists()), self.device, transposed=True)

    @property
    def mT(self) -> BlockMask:  # noqa: N802  (the array API's name)
        """The mask (B, H, Sk, Sq) with queries and keys exchanged; of a mask made by `empty`, as it is now.

        That is a copy, and of such a mask on a device it is waited for.
        """
        if self._fixed:
            return self._like_this(transpose(self.host_lists()))
        result = BlockMask(self.transposed)
        result._transposed = self._lists
        return result

    def overwrite(self, lists: BlockLists) -> BlockMask:
        """Rewrite a mask made by `empty` with lists on the host; what ``out=`` of constructors does.

        Raises
        ------
        ValueError
            If the mask is an immutable one, of another shape or block size, or too small; it is then untouched.
        """
        if not self._fixed:
            raise ValueError("out must be a mask made by BlockMask.empty, got an immutable one")
        require_room(lists, self._lists.grid, self._buffers.capacity, self._buffers.partial_capacity)
        with self._lock:
            self._buffers.rewrite(lists)
        return self._rewritten()

    def _rewritten(self) -> BlockMask:
        with self._lock:
            self._transposed = self._buffers.transposed
            self._device_copies = {}
        return self

    def __and__(self, other: BlockMask) -> BlockMask:
        """What both masks see; waits for masks on a device."""
        if not isinstance(other, BlockMask):
            return NotImplemented
        self._check_same_grid(other, "&")
        return self._like_this(algebra.intersection(self.host_lists(), other.host_lists()))

    def __or__(self, other: BlockMask) -> BlockMask:
        """What either mask sees; waits for masks on a device."""
        if not isinstance(other, BlockMask):
            return NotImplemented
        self._check_same_grid(other, "|")
        return self._like_this(algebra.union(self.host_lists(), other.host_lists()))

    def __invert__(self) -> BlockMask:
        """What the mask does not see, inside the shape; waits for a mask on a device."""
        return self._like_this(algebra.complement(self.host_lists()))

    def _check_same_grid(self, other: BlockMask, operator: str) -> None:
        if self._lists.grid != other._lists.grid:
            raise ValueError(
                f"{operator} needs masks of one shape and block_size, got {self.shape} in {self.block_size} blocks "
                f"and {other.shape} in {other.block_size} blocks"
            )
        if self.device != other.device:
            raise ValueError(
                f"{operator} needs masks on one device, got one on {self.device} and one on {other.device}"
            )

    def __getitem__(self, index: tuple[int | slice, int | slice]) -> BlockMask:
        """Return ``mask[b, h]`` as a mask of four dims; b and h are ints or slices. Waits for a mask on a device."""
        if not isinstance(index, tuple) or len(index) != 2:
            raise TypeError(f"a BlockMask is indexed as mask[b, h], got mask[{index!r}]")
        batch, heads = (self._pick(n, at) for n, at in zip(self.shape, index, strict=False))
        groups = (batch[:, None] * self.shape[1] + heads).ravel()
        return self._like_this(take_groups(self.host_lists(), groups, len(batch), len(heads)))

    @staticmethod
    def _pick(n: int, index: int | slice) -> npt.NDArray[np.int64]:
        try:
            return np.atleast_1d(np.arange(n)[index if isinstance(index, slice) else operator.index(index)])
        except TypeError:
            raise TypeError(f"a BlockMask is indexed by ints and slices, got {index!r}") from None

    def rows(self, start: int, stop: int) -> BlockMask:
        """Return element rows ``start <= i < stop`` as a mask of its own; columns keep their coordinates.

        Waits for a mask on a device.

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
        return self._like_this(recut.rows(self.host_lists(), start, stop))

    def with_block_size(self, block_size: int | tuple[int, int]) -> BlockMask:
        """Return the same elements cut into blocks of another size; waits for a mask on a device.

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
        return self._like_this(recut.with_block_size(self.host_lists(), block_size))

    def check(self) -> None:
        """Validate every invariant of the lists; ValueError names the first that is broken.

        Of a mask on a device it is also an error if a capacity had no room for all blocks, or if ids or counts were out
        of range or repeated; it is waited for.
        """
        if self._on_host:
            check.check(self._lists, self._transposed)
        elif self._buffers is not None:
            self._buffers.check()
        else:
            self._lists.check(self._transposed)

    def to_device(self, device: str) -> BlockMask:
        """Return the mask on a device, or on the host ("cpu"): itself where it is there already.

        Waits for a mask on a device. Copies are immutable: a later rewrite of this mask does not reach them.

        Raises
        ------
        ValueError
            If there is no such device.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> mask = BlockMask.causal((128, 128))
        >>> mask.to_device("cpu") is mask
        True
        """
        name = placing.check_device(device)
        if name == self.device:
            return self
        return BlockMask(placing.placed(self.host_lists(), name))

    def __repr__(self) -> str:
        return f"BlockMask(shape={self.shape}, block_size={self.block_size}, device={self.device!r})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NoReturn:
        raise TypeError(
            "a BlockMask does not turn into an array by itself, which takes Sq x Sk elements: call to_dense()"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies, because a mask made by `empty` comes out as it is now and does not follow later rewrites.
        arrays = {name: array.copy() for name, array in self.host_lists().trimmed().arrays().items()}
        return _unpickle, ({"version": _PICKLE_VERSION, "shape": self.shape, "block_size": self.block_size, **arrays},)


def _unpickle(state: dict[str, Any]) -> BlockMask:
    version = state.pop("version", None)
    if version != _PICKLE_VERSION:
        raise ValueError(f"a pickled BlockMask must be of version {_PICKLE_VERSION}, got {version}")
    batch, heads, *shape = state.pop("shape")
    grid = Grid.make(shape, state.pop("block_size"), batch, heads)
    return BlockMask(BlockLists(grid, **state))
