"""Instructions that the lanes of a warp carry out together, for all warps at once. Lane l of warp w is lane 32 w + l.

PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": the layouts of fragments are from its figures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from ptx.parse import PtxError
from ptx.values import Array, canonical

LANES = 32


def shuffle(value: Array, by: Array, clamp: Array) -> Array:
    """``shfl.sync.bfly``: the value of lane (own lane ^ `by`)."""
    if (clamp != LANES - 1).any():
        raise PtxError(f"unknown: a shuffle within {clamp}")
    lanes = np.arange(len(value))
    return value[lanes ^ np.broadcast_to(by % LANES, len(lanes))]


def vote(condition: Array, *, ballot: bool) -> Array:
    """``vote.sync.ballot`` or ``.any``."""
    by_warp = condition.reshape(-1, LANES)
    if not ballot:
        return np.repeat(by_warp.any(1), LANES)
    bits = by_warp.astype(np.uint64) << np.arange(LANES, dtype=np.uint64)
    return np.repeat(bits.sum(1).astype(np.uint32), LANES)


def spread_matrices(rows: Array, transposed: bool) -> list[Array]:
    """``ldmatrix.x4``: `rows` (lanes, 4) words, of which lane 8 m + r brought row r of matrix m."""
    matrices = rows.reshape(-1, 4, 8, 4)  # warp, matrix, row, two columns
    if transposed:
        elements = np.ascontiguousarray(matrices).view(np.uint16)  # warp, matrix, row, column
        matrices = np.ascontiguousarray(elements.swapaxes(2, 3)).view(np.uint32)
    return [matrices[:, m].reshape(-1) for m in range(4)]


def multiplication(parts: list[str]) -> Callable[[list[Array], list[Array], list[Array]], list[Array]]:
    """``mma.m16n8k16`` of f16 and bf16, ``mma.m16n8k8`` of tf32.

    Raises
    ------
    PtxError
        If it is another one.
    """
    for shape, kind, elements in (("m16n8k16", "f16", _f16), ("m16n8k16", "bf16", _bf16), ("m16n8k8", "tf32", _tf32)):
        if ".".join(parts) == f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32":
            return functools.partial(_multiply, elements)
    raise PtxError(f"unknown: the instruction {'.'.join(parts)}")


def _multiply(elements: Callable[[Array], Array], a: list[Array], b: list[Array], c: list[Array]) -> list[Array]:
    """A B + C, with sums in float64 that are rounded once."""
    # Of each 16 x 8 half of A: row g and row g + 8; the upper half of the columns comes last.
    left = np.stack([elements(x) for x in a], 1)  # warp, part, g, t, neighbours
    warps, _, _, _, near = left.shape
    left = left.reshape(warps, 2, 2, 8, 4, near).transpose(0, 2, 3, 1, 4, 5).reshape(warps, 16, 8 * near)
    right = np.stack([elements(x) for x in b], 1).transpose(0, 1, 3, 4, 2).reshape(warps, 8 * near, 8)
    sums = np.stack([x.reshape(-1, 8, 4) for x in c], -1).astype(np.float64)  # warp, g, t, part
    sums = sums.reshape(warps, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(warps, 16, 8)
    result = canonical((left @ right + sums).astype(np.float32)).reshape(warps, 2, 8, 4, 2)
    return [result[:, row, :, :, column].reshape(-1) for row in (0, 1) for column in (0, 1)]


def _f16(words: Array) -> Array:
    return np.ascontiguousarray(words).view(np.float16).astype(np.float64).reshape(-1, 8, 4, 2)


def _bf16(words: Array) -> Array:
    halves = np.ascontiguousarray(words).view(np.uint16).astype(np.uint32) << np.uint32(16)
    return halves.view(np.float32).astype(np.float64).reshape(-1, 8, 4, 2)


def _tf32(words: Array) -> Array:
    cut = words.view(np.uint32) & np.uint32(0xFFFFE000)
    return cut.view(np.float32).astype(np.float64).reshape(-1, 8, 4, 1)
