"""From arrays to the operands of kernels: byte strides by batch dim, head, row and column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from flashcupy.cuda.params import BATCH_DIMS, DTYPES, Operand
from flashcupy.errors import UnsupportedError

# What the trailing dims of an array are; the dims before them are batch dims.
MATRIX = ("head", "row", "column")
ROWS = ("head", "row")
HEADS = ("head",)
ENTRIES: tuple[str, ...] = ()
SEQUENCES = ("row",)


class Layout(NamedTuple):
    """An array without its address: everything of an operand that a plan depends on."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    unaligned: bool
    dims: tuple[str, ...]

    @classmethod
    def of(cls, array: Any, dims: tuple[str, ...], address: int) -> Layout:
        item = array.dtype.itemsize
        unaligned = address % item != 0 or any(stride % item for stride in array.strides)
        return cls(array.shape, array.strides, array.dtype.name, unaligned, dims)

    @classmethod
    def packed(cls, shape: tuple[int, ...], dtype: str, item: int, dims: tuple[str, ...]) -> Layout:
        """Row-major memory without gaps."""
        strides, step = [], item
        for extent in reversed(shape):
            strides.append(step)
            step *= extent
        return cls(shape, tuple(reversed(strides)), dtype, False, dims)

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides, 0 where the array broadcasts."""
        return tuple(0 if extent == 1 else step for extent, step in zip(self.shape, self.strides, strict=True))

    def batch_steps(self, batch_dims: int) -> tuple[int, ...]:
        """Strides of the batch dims, right-aligned: 0 where the array lacks or broadcasts one."""
        own = self.steps[: max(0, len(self.shape) - len(self.dims))]
        return (0,) * (batch_dims - len(own)) + own


class Batch:
    """The batch dims as kernels see them: those that all operands step through evenly are merged."""

    def __init__(self, extents: tuple[int, ...], layouts: Sequence[Layout]) -> None:
        steps = [layout.batch_steps(len(extents)) for layout in layouts]
        kept: list[list[int]] = []  # runs of merged dims
        for dim, extent in enumerate(extents):
            if extent == 1:
                continue
            last = kept[-1][-1] if kept else None
            if last is not None and all(own[last] == own[dim] * extent for own in steps):
                kept[-1].append(dim)
            else:
                kept.append([dim])
        if len(kept) > BATCH_DIMS:
            raise UnsupportedError(
                f"the batch dims {extents} of these arrays need {len(kept)} separate strides, the CUDA backend has "
                f"{BATCH_DIMS}: copy them to contiguous memory of the full batch, or loop over a batch dim"
            )
        self._dims = len(extents)
        self._runs: list[list[int]] = [[]] * (BATCH_DIMS - len(kept)) + kept
        self.extents = tuple(self._product(extents, run) for run in self._runs)

    @staticmethod
    def _product(extents: tuple[int, ...], run: list[int]) -> int:
        product = 1
        for dim in run:
            product *= extents[dim]
        return product

    def steps(self, layout: Layout) -> tuple[int, ...]:
        """Strides of an array by merged dim."""
        own = layout.batch_steps(self._dims)
        return tuple(own[run[-1]] if run else 0 for run in self._runs)

    def extents_of(self, layout: Layout) -> tuple[int, ...]:
        """Extents of an array by merged dim: 1 where it broadcasts."""
        missing = self._dims - max(0, len(layout.shape) - len(layout.dims))
        own = (1,) * missing + layout.shape[: self._dims - missing]
        return tuple(self._product(own, run) for run in self._runs)

    def operand(self, layout: Layout) -> Operand:
        """Everything of an operand but its address."""
        result = Operand(dtype=DTYPES[layout.dtype], unaligned=layout.unaligned)
        result.batch[:] = self.steps(layout)
        trailing = layout.dims[len(layout.dims) - min(len(layout.dims), len(layout.shape)) :]
        for name, step in zip(trailing, layout.steps[len(layout.shape) - len(trailing) :], strict=True):
            setattr(result, name, step)
        return result
