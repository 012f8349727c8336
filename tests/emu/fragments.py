"""Fragments of mma and ldmatrix, said twice: by the formulas of the PTX ISA, and as layouts of CuTe.

A fragment's elements are numbered as in the manual: element i of a lane, two to a register where they have 16 bits.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

_LANE = np.arange(32)[:, None]
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4


@dataclass(frozen=True)
class Fragment:
    """Arrays of 32 lanes by elements: where an element lies in its matrix."""

    row: np.ndarray
    column: np.ndarray

    def take(self, matrices: np.ndarray) -> np.ndarray:
        """Matrices ``[..., rows, columns]`` as fragments ``[..., lane, element]``."""
        return matrices[..., self.row, self.column]

    def put(self, fragments: np.ndarray) -> np.ndarray:
        """Fragments as matrices."""
        shape = (*fragments.shape[:-2], int(self.row.max()) + 1, int(self.column.max()) + 1)
        matrices = np.empty(shape, fragments.dtype)
        matrices[..., self.row, self.column] = fragments
        return matrices


def _fragment(elements: int, row, column) -> Fragment:
    i = np.arange(elements)[None, :]
    return Fragment(*np.broadcast_arrays(row(i), column(i)))


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type", .f16 and .bf16.
A_16_BITS = _fragment(
    8,
    lambda i: np.where((i < 2) | ((i >= 4) & (i < 6)), _GROUP, _GROUP + 8),
    lambda i: np.where(i < 4, _IN_GROUP * 2 + i % 2, _IN_GROUP * 2 + i % 2 + 8),
)
B_16_BITS = _fragment(
    4,
    lambda i: np.where(i < 2, _IN_GROUP * 2 + i % 2, _IN_GROUP * 2 + i % 2 + 8),
    lambda i: _GROUP + 0 * i,
)
# "Matrix Fragments for mma.m16n8k8", .tf32.
A_TF32 = _fragment(
    4,
    lambda i: np.where((i == 0) | (i == 2), _GROUP, _GROUP + 8),
    lambda i: np.where(i < 2, _IN_GROUP, _IN_GROUP + 4),
)
B_TF32 = _fragment(2, lambda i: np.where(i == 0, _IN_GROUP, _IN_GROUP + 4), lambda i: _GROUP + 0 * i)
# C and D of both.
C_FLOAT32 = _fragment(4, lambda i: np.where(i < 2, _GROUP, _GROUP + 8), lambda i: _IN_GROUP * 2 + i % 2)

# ldmatrix: rows of eight elements of 16 bits; a lane gets two of each matrix.
LDMATRIX = _fragment(2, lambda i: _GROUP + 0 * i, lambda i: _IN_GROUP * 2 + i)
LDMATRIX_TRANSPOSED = _fragment(2, lambda i: _IN_GROUP * 2 + i, lambda i: _GROUP + 0 * i)


def cute_layout(shape, stride) -> np.ndarray:
    """Evaluate a layout of CuTe at all its coordinates; the first mode is the outer axis, the leftmost runs fastest."""

    def offsets(sizes, steps) -> list[int]:
        if isinstance(sizes, int):
            return [steps * n for n in range(sizes)]
        modes = [offsets(size, step) for size, step in zip(sizes, steps, strict=True)]
        return [sum(choice) for choice in itertools.product(*reversed(modes))]

    outer, inner = (np.array(offsets(*mode)) for mode in zip(shape, stride, strict=True))
    return outer[:, None] + inner[None, :]


# MMA_Traits and Copy_Traits of CUTLASS: (lane, element) to row + rows * column for A and C, to column + columns * row
# for B; and for LDSM (lane, bit of its registers) to the bit of the rows that it comes from.
CUTE = {
    "SM80_16x8x16 A": (((4, 8), (2, 2, 2)), ((32, 1), (16, 8, 128))),
    "SM80_16x8x16 B": (((4, 8), (2, 2)), ((16, 1), (8, 64))),
    "SM80_16x8x8 TF32 A": (((4, 8), (2, 2)), ((16, 1), (8, 64))),
    "SM80_16x8x8 TF32 B": (((4, 8), 2), ((8, 1), 32)),
    "SM80 C": (((4, 8), (2, 2)), ((32, 1), (16, 8))),
    "SM75_U32x4_LDSM_N": ((32, (32, 4)), (32, (1, 1024))),
    "SM75_U16x8_LDSM_T": (((4, 8), (16, 2, 4)), ((256, 16), (1, 128, 1024))),
}
