"""The dropout keep mask: a pure function of (seed, offset, batch, head, row, column).

Counter-based random bytes from Philox4x32 with 7 rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
easy as 1, 2, 3", SC 2011). Any part of the mask can be drawn alone, in any order and any tiling, and the CUDA kernels
draw the same bits. The scheme, which ``kernels_cu/README.md`` states for CUDA:

- Stream, once per (seed, offset, batch index ``b``, query head ``h``): ``s = philox(counter=(offset_lo, offset_hi, b,
  h), key=(seed_lo, seed_hi))``. The words ``s[0], s[1]`` are the key of the stream, ``s[2], s[3]`` the upper half of
  its counters.
- Patch: one call ``philox(counter=(row_call, col_call, s[2], s[3]), key=(s[0], s[1]))`` gives 16 bytes, for rows
  ``{2a, 2a + 1, 2a + 8, 2a + 9}`` x columns ``{2c, 2c + 1, 2c + 8, 2c + 9}`` of a 16 x 16 tile, where
  ``row_call = (i >> 4) * 4 + ((i & 7) >> 1)``, and ``col_call`` is the same function of ``j``.
- Element (i, j): word ``2 * (i & 1) + (j & 1)``, byte ``2 * ((i >> 3) & 1) + ((j >> 3) & 1)`` of it (byte 0 is the
  least significant). Two of the four words serve a lane of a tensor-core accumulator, for S and for S transposed.
- Keep the element iff its byte < k, where ``k = floor(256 * (1 - p) + 0.5)``; survivors are scaled by ``256 / k``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

_Words = tuple[npt.ArrayLike, ...]
_IntArray = npt.NDArray[np.integer[Any]]


def philox4x32(counter: _Words, key: _Words, rounds: int = 7) -> tuple[npt.NDArray[np.uint64], ...]:
    """Encrypt counters with Philox4x32.

    Parameters
    ----------
    counter : four array_like of integers in [0, 2**32)
        Words of the counter; they broadcast against each other.
    key : two array_like of integers in [0, 2**32)
        Words of the key; they broadcast with the counter.
    rounds : int
        7 is the smallest number that passes BigCrush, 10 the authors' safety margin.

    Returns
    -------
    four arrays of uint64
        Words in [0, 2**32), kept in the type that the 32 x 32 -> 64 bit products need.

    Examples
    --------
    >>> [f"{int(word):08x}" for word in philox4x32((0, 0, 0, 0), (0, 0))]
    ['5f6fb709', '0d893f64', '4f121f81', '4f730a48']
    """
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = (np.asarray(word, dtype=np.uint64) for word in key)
    # Nothing is expanded early: with a row index in c0 and a column index in c1, the words stay one-dimensional for
    # two rounds, which therefore cost next to nothing.
    for _ in range(rounds):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (product1 >> _HALF) ^ (c1 ^ k0), (product0 >> _HALF) ^ (c3 ^ k1)
        c1, c3 = product1 & _LOW, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def keep_threshold(p: float) -> int:
    """Return k of 0..256: an element is kept when its random byte is below k.

    >>> keep_threshold(0.0), keep_threshold(0.1), keep_threshold(0.999)
    (256, 230, 0)
    """
    return int(256 * (1 - p) + 0.5)


def keep_scale(k: int) -> float:
    """Return the factor of the survivors, 256 / k, which makes up for what is dropped (0 if nothing survives).

    >>> keep_scale(256), keep_scale(128), keep_scale(0)
    (1.0, 2.0, 0.0)
    """
    return 256 / k if k else 0.0


def keep_mask(
    k: int, seed: int, offset: int, b: int, h: int, rows: tuple[int, int], cols: tuple[int, int] | _IntArray
) -> npt.NDArray[np.bool_]:
    """Draw the dropout keep mask of some rows and columns of one head: True = keep.

    Parameters
    ----------
    k : int
        Threshold of 0..256, see `keep_threshold`.
    seed, offset : int
        Each in [0, 2**64).
    b, h : int
        Flat batch (or sequence) index and query head, in [0, 2**32).
    rows : (start, stop)
        Range of query rows, local to the sequence, of any alignment.
    cols : (start, stop) or 1-D array of int
        Range of key columns (a tuple), or column indices in any order (an array).

    Returns
    -------
    array of bool (stop - start, number of columns)
        Each element depends on its own coordinates alone, so any tiling gives the same bits. The array may be a view.

    Examples
    --------
    >>> whole = keep_mask(128, 7, 0, 0, 0, (0, 64), (0, 64))
    >>> bool((whole[5:33, 40:] == keep_mask(128, 7, 0, 0, 0, (5, 33), (40, 64))).all())
    True
    """
    row_tiles, row_pick = _range_tiles(*rows)
    col_tiles, col_pick = _range_tiles(*cols) if isinstance(cols, tuple) else _gather_tiles(cols)
    if k in (0, 256):  # also because 256 is no uint8
        tiles = np.full((16 * len(row_tiles), 16 * len(col_tiles)), k == 256)
    else:
        s = philox4x32((offset & 0xFFFFFFFF, offset >> 32, b, h), (seed & 0xFFFFFFFF, seed >> 32))
        words = philox4x32((_calls(row_tiles)[:, None], _calls(col_tiles), s[2], s[3]), (s[0], s[1]))
        tiles = _spread(words, len(row_tiles), len(col_tiles)) < np.uint8(k)
    return tiles[row_pick, col_pick]


def _range_tiles(start: int, stop: int) -> tuple[_IntArray, slice]:
    """Return the 16-wide tiles that a range touches, and where the range lies in them."""
    first = start >> 4
    return np.arange(first, -(-stop >> 4)), slice(start - 16 * first, stop - 16 * first)


def _gather_tiles(indices: _IntArray) -> tuple[_IntArray, slice | _IntArray]:
    """Return the 16-wide tiles that indices touch, and the position of each index in them."""
    tiles, which = np.unique(indices >> 4, return_inverse=True)
    position = 16 * which + (indices & 15)
    if np.array_equal(position, np.arange(len(position))):  # ascending whole blocks: a view instead of a gather
        return tiles, slice(len(position))
    return tiles, position


def _calls(tiles: _IntArray) -> _IntArray:
    """Return the four call indices of each tile, in order."""
    return (4 * tiles[:, None] + np.arange(4)).ravel()


def _spread(words: tuple[npt.NDArray[np.uint64], ...], row_tiles: int, col_tiles: int) -> npt.NDArray[np.uint8]:
    """Put the bytes of words (4 row_tiles, 4 col_tiles) at their elements: (16 row_tiles, 16 col_tiles)."""
    # Axes: a = (i & 7) >> 1 and c = (j & 7) >> 1 number the calls in a tile, row_odd and col_odd the words, the rest of
    # i and j the bytes. Words that differ in col_odd are interleaved first, because copying runs of 8 bytes is three
    # times as fast as placing single ones.
    pairs = np.empty((4 * row_tiles, 2, 4 * col_tiles, 2), dtype="<u4")  # row call, row_odd, col call, col_odd
    for number, word in enumerate(words):
        pairs[:, number >> 1, :, number & 1] = word
    runs = pairs.view(np.uint8).reshape(row_tiles, 4, 2, col_tiles, 8, 4)  # tile, a, row_odd, tile, (c, col_odd), byte
    out = np.empty((row_tiles, 2, 4, 2, col_tiles, 2, 8), dtype=np.uint8)
    for byte in range(4):
        out[:, byte >> 1, :, :, :, byte & 1] = runs[..., byte]
    return out.reshape(16 * row_tiles, 16 * col_tiles)
