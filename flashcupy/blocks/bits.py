"""Element patterns of PARTIAL blocks, packed 32 columns to a uint32 word (bit ``c % 32`` of word ``c // 32``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

from flashcupy.blocks.grid import Grid

WORD = 32
CHUNK_ELEMENTS = 1 << 20  # bool elements in flight: a few MB with the index arrays that go with them

Patterns = npt.NDArray[np.uint32]


def words(block_k: int) -> int:
    """Words that hold one row of a block."""
    return -(-block_k // WORD)


def pack(dense: npt.NDArray[np.bool_]) -> Patterns:
    """Pack bool (n, bq, bk) into uint32 (n, bq, words)."""
    pad = -dense.shape[-1] % WORD
    if pad:
        dense = np.pad(dense, ((0, 0), (0, 0), (0, pad)))
    packed = np.packbits(dense, axis=-1, bitorder="little")
    return np.ascontiguousarray(packed).view("<u4").astype(np.uint32, copy=False)


def unpack(bits: Patterns, block_k: int) -> npt.NDArray[np.bool_]:
    """Unpack uint32 (n, bq, words) into bool (n, bq, bk)."""
    octets = np.ascontiguousarray(bits, dtype="<u4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=block_k, bitorder="little").view(np.bool_)


def dedupe(bits: Patterns) -> tuple[Patterns, npt.NDArray[np.int64]]:
    """Return the distinct patterns, in the order of their bytes, and which of them each was."""
    rows = np.ascontiguousarray(bits).reshape(len(bits), bits.shape[1] * bits.shape[2])
    as_bytes = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    _, first, inverse = np.unique(as_bytes, return_index=True, return_inverse=True)
    return bits[first], inverse


def with_constants(bits: Patterns) -> Patterns:
    """Append all-false and all-true, so that the ids ABSENT = -2 and FULL = -1 index them."""
    constants = np.zeros((2, *bits.shape[1:]), np.uint32)
    constants[1] = ~constants[1]
    return np.concatenate([bits, constants])


def chunks(n: int, elements: int) -> Iterator[slice]:
    """Cut ``range(n)`` so that a chunk of things of that many elements stays within CHUNK_ELEMENTS."""
    step = max(1, CHUNK_ELEMENTS // max(elements, 1))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def build(n: int, block_size: tuple[int, int], f: Callable[[slice], npt.NDArray[np.bool_]]) -> Patterns:
    """Pack n patterns, where ``f(part)`` gives those of a slice as bool (len, bq, bk)."""
    bq, bk = block_size
    bits = np.empty((n, bq, words(bk)), np.uint32)
    for part in chunks(n, bq * bk):
        bits[part] = pack(f(part))
    return bits


def evaluate(
    grid: Grid, keys: Iterable[npt.NDArray[np.int64]], f: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Patterns]:
    """Evaluate blocks, given in chunks of keys, with ``f(keys) -> bool (n, bq, bk)``.

    Returns
    -------
    keys, ids : int64
        The blocks that see anything, and the pattern of each.
    bits : uint32 (n_patterns, bq, words)
        Distinct within a chunk only.
    """
    kept_keys, kept_ids, kept_bits, n_patterns = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [], 0
    for chunk in keys:
        patterns = pack(f(chunk))
        seen = patterns.any(axis=(1, 2))
        distinct, ids = dedupe(patterns[seen])
        kept_keys.append(chunk[seen])
        kept_ids.append(ids + n_patterns)
        kept_bits.append(distinct)
        n_patterns += len(distinct)
    kept_bits.append(np.empty((0, grid.block_q, words(grid.block_k)), np.uint32))
    return np.concatenate(kept_keys), np.concatenate(kept_ids), np.concatenate(kept_bits)
