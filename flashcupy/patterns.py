"""Pattern constructors of BlockMask, each in O(blocks) work and memory: no element mask is ever made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import algebra, band, documents, placing, sampled
from flashcupy.blocks.grid import BlockSize, Grid, check_count
from flashcupy.blocks.lists import BlockLists, Lists, broadcast_groups

if TYPE_CHECKING:
    from typing_extensions import Self

Align = Literal["bottom-right", "top-left"]


class PatternConstructors:
    """The part of BlockMask that builds well-known patterns.

    `shape` is (Sq, Sk) in elements, `block_size` an int or (bq, bk): 16, 32, 64, 128 or a multiple of 128. A mask with
    `batch` and `heads` 1 serves all batch entries and heads; larger ones repeat the pattern, to be combined with masks
    that differ by head. Patterns are built on the host; with a `device` such as "cuda:0" the lists are copied there.
    """

    if TYPE_CHECKING:

        def __init__(self, lists: Lists) -> None: ...

    @classmethod
    def causal(
        cls,
        shape: tuple[int, int],
        *,
        align: Align = "bottom-right",
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let each query see the keys up to its own position: ``j <= i + off``.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`.
        align : {"bottom-right", "top-left"}
            off = Sk - Sq, so that the last query sees the last key, or off = 0.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> print(BlockMask.causal((256, 256)))
        BlockMask 1 x 1 x 256 x 256, blocks 64 x 64, density 0.625
        ▒···
        █▒··
        ██▒·
        ███▒
        """
        return cls.sliding_window(
            shape, None, 0, align=align, block_size=block_size, batch=batch, heads=heads, device=device
        )

    @classmethod
    def sliding_window(
        cls,
        shape: tuple[int, int],
        left: int | None,
        right: int | None,
        *,
        align: Align = "bottom-right",
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let each query see the keys around its own position: ``i + off - left <= j <= i + off + right``.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`.
        left, right : int or None
            Keys seen before and after; None for all of them. ``right=0`` is a causal window.
        align : {"bottom-right", "top-left"}
            off = Sk - Sq or off = 0, as in `causal`.

        Raises
        ------
        ValueError
            If `left` or `right` is negative (-1 is not "no limit": None is), or another argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.sliding_window((131072, 131072), 4096, 0).stats()["patterns"]
        2
        """
        grid = _grid(shape, block_size, batch, heads, device)
        return cls(placing.placed(_repeat(band.band(grid.one_head, left, right, align), grid), device))

    @classmethod
    def global_tokens(
        cls,
        shape: tuple[int, int],
        n: int,
        *,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let the first n queries see every key, and the first n keys be seen by every query.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`.
        n : int
            Tokens; more than there are means all.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> longformer = BlockMask.sliding_window((512, 512), 64, 64) | BlockMask.global_tokens((512, 512), 64)
        >>> longformer.to_dense()[0, 0, 300].nonzero()[0][[0, 63, 64, -1]]
        array([  0,  63, 236, 364])
        """
        n = check_count("n", n)
        grid = _grid(shape, block_size, batch, heads, device)
        one = grid.one_head
        return cls(
            placing.placed(
                _repeat(algebra.union(band.leading(one, n, one.seqlen_k), band.leading(one, one.seqlen_q, n)), grid),
                device,
            )
        )

    @classmethod
    def prefix_lm(
        cls,
        shape: tuple[int, int],
        n: int,
        *,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let each query see the first n keys, and those up to its own position: ``j < n or j <= i + Sk - Sq``.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`.
        n : int
            Length of the prefix; more than there are keys means all.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> print(BlockMask.prefix_lm((256, 256), 128))
        BlockMask 1 x 1 x 256 x 256, blocks 64 x 64, density 0.688
        ██··
        ██··
        ██▒·
        ███▒
        """
        n = check_count("n", n)
        grid = _grid(shape, block_size, batch, heads, device)
        one = grid.one_head
        causal = band.band(one, None, 0, "bottom-right")
        return cls(placing.placed(_repeat(algebra.union(causal, band.leading(one, one.seqlen_q, n)), grid), device))

    @classmethod
    def document(
        cls,
        q_ids: npt.ArrayLike,
        k_ids: npt.ArrayLike | None = None,
        *,
        block_size: BlockSize = 64,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let each query see the keys that bear its own id: packed documents, segments, clusters.

        Parameters
        ----------
        q_ids : int array (Sq,) or (B, Sq)
            In any order; equal ids need not be neighbours.
        k_ids : int array (Sk,) or (B, Sk), optional
            Default: `q_ids`.
        block_size, heads, device
            See `PatternConstructors`; the batch is that of the ids.

        Raises
        ------
        TypeError
            If ids are not integers.
        ValueError
            If their shapes do not agree.

        Examples
        --------
        >>> import numpy as np
        >>> from flashcupy.block_mask import BlockMask
        >>> ids = np.repeat([0, 1, 2], [100, 28, 128])
        >>> packed = BlockMask.document(ids) & BlockMask.causal((256, 256))
        >>> int(packed.to_dense()[0, 0, 110].sum())
        11
        """
        placing.check_device(device)
        lists = documents.from_ids(q_ids, k_ids, block_size)
        heads = check_count("heads", heads)
        return cls(placing.placed(_repeat(lists, dataclasses.replace(lists.grid, heads=heads)), device))

    @classmethod
    def random(
        cls,
        shape: tuple[int, int],
        per_row: int,
        *,
        rng: np.random.Generator | int,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Let each block row see `per_row` distinct blocks, wholly; batch entries and heads draw their own.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`.
        per_row : int
            At most the number of block columns.
        rng : numpy.random.Generator or int
            A generator, or the seed of one.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.random((1024, 1024), 4, rng=0, heads=8).density
        0.25
        """
        grid = _grid(shape, block_size, batch, heads, device)
        per_row = check_count("per_row", per_row)
        if per_row > grid.nk:
            raise ValueError(f"per_row must be at most the {grid.nk} block columns of the mask, got {per_row}")
        return cls(placing.placed(sampled.random_blocks(grid, per_row, np.random.default_rng(rng)), device))

    @classmethod
    def bigbird(
        cls,
        shape: tuple[int, int],
        *,
        window: int,
        n_global: int,
        n_random: int,
        rng: np.random.Generator | int,
        block_size: BlockSize = 64,
        batch: int = 1,
        heads: int = 1,
        device: str | None = None,
    ) -> Self:
        """Join global, window and random blocks (Zaheer et al., 2020, "Big Bird: Transformers for Longer Sequences").

        All blocks are seen wholly; a decoder adds ``& BlockMask.causal(shape)``.

        Parameters
        ----------
        shape, block_size, batch, heads, device
            See `PatternConstructors`; batch entries and heads draw their own random blocks.
        window : int
            Width of the window in blocks, odd: it is centred on the block that holds the diagonal at the first query of
            the block row (bottom-right aligned).
        n_global : int
            Leading block rows that see all, and leading block columns that are seen by all.
        n_random : int
            Further blocks in each block row, drawn among those that are neither global nor in the window; all of these,
            where they are fewer.
        rng : numpy.random.Generator or int
            A generator, or the seed of one.

        Raises
        ------
        ValueError
            If an argument is out of range.

        Examples
        --------
        >>> from flashcupy.block_mask import BlockMask
        >>> BlockMask.bigbird((131072, 131072), window=3, n_global=2, n_random=3, rng=0).stats()["full"]
        20462
        """
        grid = _grid(shape, block_size, batch, heads, device)
        window = check_count("window", window, 1)
        if window % 2 == 0:
            raise ValueError(f"window must be odd, to be centred on the diagonal, got {window}")
        n_global, n_random = check_count("n_global", n_global), check_count("n_random", n_random)
        return cls(
            placing.placed(sampled.bigbird(grid, window, n_global, n_random, np.random.default_rng(rng)), device)
        )


def _grid(shape: tuple[int, int], block_size: BlockSize, batch: int, heads: int, device: str | None) -> Grid:
    placing.check_device(device)
    return Grid.make(shape, block_size, batch, heads)


def _repeat(lists: BlockLists, grid: Grid) -> BlockLists:
    return lists if lists.grid == grid else broadcast_groups(lists, grid.batch, grid.heads)
