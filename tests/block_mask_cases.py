"""Masks to test with, and the lists they must have, worked out one block at a time."""

import itertools

import numpy as np

from flashcupy.block_mask import BlockMask

BLOCK_SIZES = [16, 32, 64, (64, 128), (32, 16), 256]
SHAPES = [(128, 256), (100, 200), (257, 130), (1, 1), (0, 50), (50, 0)]
ARRAYS = ("full_indptr", "full_indices", "partial_indptr", "partial_indices", "bits", "bits_id")
SHARED = 3


def pair(block_size):
    return block_size if isinstance(block_size, tuple) else (block_size, block_size)


def grid(shape, block_size):
    bq, bk = pair(block_size)
    return -(-shape[0] // bq), -(-shape[1] // bk)


def scattered(rng, shape, block_size, leading=(1, 1)):
    """Dense mask (*leading, Sq, Sk) with FULL, empty, and PARTIAL blocks, some of them alike."""
    (bq, bk), (nq, nk) = pair(block_size), grid(shape, block_size)
    patterns = rng.random((SHARED + 2, bq, bk)) < 0.5
    patterns[0], patterns[1] = False, True
    blocks = patterns[rng.integers(0, len(patterns), (*leading, nq, nk))]
    dense = np.moveaxis(blocks, -2, -3).reshape(*leading, nq * bq, nk * bk)[..., : shape[0], : shape[1]].copy()
    if dense.size:
        dense[..., -1, -1] ^= True  # a pattern of its own
    return dense


def expand(blocks, shape, block_size):
    """Dense mask of whole blocks, bool (..., nq, nk) -> (..., Sq, Sk)."""
    bq, bk = pair(block_size)
    return blocks.repeat(bq, axis=-2).repeat(bk, axis=-1)[..., : shape[0], : shape[1]]


def reference_lists(dense, block_size):
    """Build the six public arrays with Python loops; dense (B, H, Sq, Sk)."""
    (bq, bk), (nq, nk) = pair(block_size), grid(dense.shape[2:], block_size)
    words = -(-bk // 32)
    full, partial, patterns = [[]], [[]], []
    for b, h, i in itertools.product(range(dense.shape[0]), range(dense.shape[1]), range(nq)):
        full.append([])
        partial.append([])
        for j in range(nk):
            block = dense[b, h, i * bq : (i + 1) * bq, j * bk : (j + 1) * bk]
            if block.all():
                full[-1].append(j)
            elif block.any():
                packed = np.zeros((bq, words), np.uint32)
                for row, col in np.argwhere(block):
                    packed[row, col // 32] |= np.uint32(1 << int(col % 32))
                partial[-1].append(j)
                patterns.append(packed.tobytes())
    distinct = sorted(set(patterns))
    return {
        "full_indptr": np.cumsum([len(row) for row in full]).astype(np.int64),
        "full_indices": np.array([j for row in full for j in row], np.int32),
        "partial_indptr": np.cumsum([len(row) for row in partial]).astype(np.int64),
        "partial_indices": np.array([j for row in partial for j in row], np.int32),
        "bits": np.frombuffer(b"".join(distinct), np.uint32).reshape(-1, bq, words),
        "bits_id": np.array([distinct.index(pattern) for pattern in patterns], np.int32),
    }


def assert_lists(mask: BlockMask, dense):
    """Compare all six arrays, dtypes included, with the reference."""
    assert mask.shape == dense.shape
    for name, wanted in reference_lists(dense, mask.block_size).items():
        got = getattr(mask, name)
        assert got.dtype == wanted.dtype, name
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def assert_sees(mask: BlockMask, dense):
    """Valid, in normal form, and the same elements as `dense` (B, H, Sq, Sk)."""
    mask.check()
    np.testing.assert_array_equal(mask.to_dense(), dense)
