"""What a mask looks like: figures, pictures, other formats. All of it is computed on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flashcupy.blocks import check, convert, draw
from flashcupy.blocks.lists import BlockLists

if TYPE_CHECKING:
    from flashcupy.block_mask import BlockMask


class MaskViews:
    """The part of BlockMask that shows what it holds. Of a mask on a device each member waits for it, and copies."""

    if TYPE_CHECKING:

        def host_lists(self) -> BlockLists: ...
        def __getitem__(self, index: tuple[int | slice, int | slice]) -> BlockMask: ...

    def equals(self, other: BlockMask) -> bool:
        """Tell whether both have one shape and block size and see the same elements; waits for a mask on a device."""
        if not isinstance(other, MaskViews):
            raise TypeError(f"other must be a BlockMask, got {type(other).__name__}")
        return check.equal(self.host_lists(), other.host_lists())

    @property
    def density(self) -> float:
        """Fraction of all blocks that are visited, FULL or PARTIAL; 0.0 without blocks. Waits for a device."""
        return check.density(self.host_lists())

    def stats(self) -> dict[str, int | float]:
        """Return figures about the mask; waits for one on a device.

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
        return check.stats(self.host_lists())

    def to_dense(self) -> npt.NDArray[np.bool_]:
        """Return one bool per score (B, H, Sq, Sk), which only this takes memory for. Waits for a mask on a device."""
        return convert.to_dense(self.host_lists())

    def to_scipy(self, format: str | None = None) -> Any:
        """Return the mask as sparse matrices of bool; waits for a mask on a device.

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
        return convert.to_scipy(self.host_lists(), format)

    def plot(self, ax: Any = None, *, batch: int = 0, head: int = 0) -> Any:
        """Draw the blocks of one head in element coordinates: empty ones white, PARTIAL ones half dark, FULL ones dark.

        Large masks are drawn at a lower resolution, as dark as they are dense; the score matrix is never built. Waits
        for a mask on a device.

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
        return draw.plot(self[batch, head].host_lists(), ax)

    def __str__(self) -> str:
        """Draw the first head in characters; waits for a mask on a device."""
        return draw.text(self.host_lists())
