"""The dropout mask against published numbers, an independent implementation in Python integers, and statistics.

``python tests/test_philox.py`` writes data/philox_dropout.json anew; the tests of other backends read it too.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashcupy.philox import keep_mask, keep_scale, keep_threshold, philox4x32

VECTORS = Path(__file__).parent / "data" / "philox_dropout.json"

# Known answers of Random123 (its kat_vectors file): counter, key, result.
KNOWN = {
    7: [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ],
    10: [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
}


# ---- the scheme once more, one element at a time, in Python integers -------------------------------------------------


def plain_philox(counter, key, rounds=7):
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for n in range(rounds):
        a, b = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        round_key = (k0 + n * 0x9E3779B9) % 2**32, (k1 + n * 0xBB67AE85) % 2**32
        x0, x1, x2, x3 = b // 2**32 ^ x1 ^ round_key[0], b % 2**32, a // 2**32 ^ x3 ^ round_key[1], a % 2**32
    return x0, x1, x2, x3


def place(i, j):
    """Return (row call, column call, word, byte) of an element."""
    (row_tile, r), (col_tile, c) = divmod(i, 16), divmod(j, 16)
    return 4 * row_tile + r % 8 // 2, 4 * col_tile + c % 8 // 2, 2 * (r % 2) + c % 2, 2 * (r // 8) + c // 8


def plain_keep_mask(k, seed, offset, b, h, rows, cols):
    s = plain_philox((offset % 2**32, offset // 2**32, b, h), (seed % 2**32, seed // 2**32))
    keep = []
    for i in rows:
        for j in cols:
            row_call, col_call, word, byte = place(i, j)
            words = plain_philox((row_call, col_call, s[2], s[3]), (s[0], s[1]))
            keep.append(words[word] // 256**byte % 256 < k)
    return np.array(keep, dtype=bool).reshape(len(rows), len(cols))


# ---- known answers ---------------------------------------------------------------------------------------------------


def parse(words):
    return tuple(int(word, 16) for word in words.split())


@pytest.mark.parametrize("rounds", KNOWN)
@pytest.mark.parametrize("number", range(3))
def test_known_answers(rounds, number):
    counter, key, expected = (parse(words) for words in KNOWN[rounds][number])
    assert plain_philox(counter, key, rounds) == expected
    assert tuple(int(word) for word in philox4x32(counter, key, rounds)) == expected


def test_counters_and_keys_broadcast():
    rng = np.random.default_rng(1)
    counter = [rng.integers(2**32, size=shape) for shape in ((3, 1), (1, 4), (3, 4), ())]
    key = [rng.integers(2**32, size=shape) for shape in ((2, 1, 1), ())]
    words = np.broadcast_arrays(*philox4x32(counter, key))
    *flat, k0, k1 = (np.broadcast_to(x, (2, 3, 4)) for x in (*counter, *key))
    for at in np.ndindex(2, 3, 4):
        expected = plain_philox([int(x[at]) for x in flat], (int(k0[at]), int(k1[at])))
        assert tuple(int(word[at]) for word in words) == expected


@pytest.mark.parametrize(
    ("p", "k"), [(0.0, 256), (0.001, 256), (0.1, 230), (0.17, 212), (0.5, 128), (0.9, 26), (0.998, 1), (0.999, 0)]
)
def test_threshold(p, k):
    assert keep_threshold(p) == k
    assert keep_scale(k) == (256 / k if k else 0)


# ---- the mask --------------------------------------------------------------------------------------------------------

words64 = st.integers(0, 2**64 - 1)
words32 = st.integers(0, 2**32 - 1)
starts = st.integers(0, 2**31)
sizes = st.integers(0, 20)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 256), words64, words64, words32, words32, starts, sizes, starts, sizes)
def test_mask_equals_the_plain_one(k, seed, offset, b, h, row, n_rows, col, n_cols):
    mask = keep_mask(k, seed, offset, b, h, (row, row + n_rows), (col, col + n_cols))
    expected = plain_keep_mask(k, seed, offset, b, h, range(row, row + n_rows), range(col, col + n_cols))
    np.testing.assert_array_equal(mask, expected, strict=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([0, 1, 100, 255, 256]), starts, sizes, st.lists(st.integers(0, 2**31), max_size=12))
def test_gathered_columns(k, row, n_rows, cols):
    mask = keep_mask(k, 3, 4, 5, 6, (row, row + n_rows), np.array(cols, dtype=np.int64))
    expected = [keep_mask(k, 3, 4, 5, 6, (row, row + n_rows), (col, col + 1)) for col in cols]
    np.testing.assert_array_equal(mask, np.hstack([np.empty((n_rows, 0), bool), *expected]), strict=True)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_gathered_blocks(dtype):
    cols = np.concatenate([np.arange(start, start + 32) for start in (64, 0, 96, 320)]).astype(dtype)
    whole = keep_mask(99, 3, 0, 0, 1, (0, 50), (0, 352))
    for gathered in (cols, np.sort(cols), np.sort(cols)[:-5]):
        np.testing.assert_array_equal(keep_mask(99, 3, 0, 0, 1, (0, 50), gathered), whole[:, gathered])


@pytest.mark.parametrize("tile", [(16, 16), (64, 32), (7, 11), (1, 100), (33, 64)])
def test_any_tiling_gives_the_same_bits(tile):
    shape = 100, 130
    whole = keep_mask(180, 2**63 + 5, 17, 2, 3, (0, shape[0]), (0, shape[1]))
    tiled = np.empty(shape, dtype=bool)
    for i in range(0, shape[0], tile[0]):
        for j in range(0, shape[1], tile[1]):
            rows, cols = (i, min(i + tile[0], shape[0])), (j, min(j + tile[1], shape[1]))
            tiled[slice(*rows), slice(*cols)] = keep_mask(180, 2**63 + 5, 17, 2, 3, rows, cols)
    np.testing.assert_array_equal(tiled, whole)


def test_thresholds_nest_and_ends_are_exact():
    masks = [keep_mask(k, 8, 0, 0, 0, (0, 40), (0, 40)) for k in range(257)]
    assert not masks[0].any()
    assert masks[256].all()
    for fewer, more in itertools.pairwise(masks):
        assert not (fewer & ~more).any()


@pytest.mark.parametrize("transposed", [False, True])
def test_a_lane_of_an_accumulator_needs_two_words_of_one_call(transposed):
    # mma.m16n8k16: lane 4 g + t holds rows g, g + 8 and columns 2 t, 2 t + 1 of each of the two n8 tiles.
    loads = {}
    for lane in range(32):
        g, t = divmod(lane, 4)
        elements = [(r, c) for r in (g, g + 8) for c in (2 * t, 2 * t + 1, 2 * t + 8, 2 * t + 9)]
        places = [place(*(element[::-1] if transposed else element)) for element in elements]
        calls, words = {p[:2] for p in places}, {p[2] for p in places}
        assert len(calls) == 1
        assert len(words) == 2
        step = 2 if transposed else 1  # from the word of even fragment columns to that of odd ones
        first = g % 2 if transposed else 2 * (g % 2)
        for (r, c), (_, _, word, byte) in zip(elements, places, strict=True):
            assert word == first + step * (c % 2)
            assert byte == (2 * (c // 8) + r // 8 if transposed else 2 * (r // 8) + c // 8)
        loads.setdefault(calls.pop(), []).append(words)
    assert len(loads) == 16
    for first, second in loads.values():  # two lanes share a call, and between them they use all of it
        assert first | second == {0, 1, 2, 3}


# ---- statistics, with fixed seeds: a right implementation fails none of them, ever -----------------------------------

SIZE = 512  # elements per side: 2 ** 18 samples


def draw(k=128, seed=11, offset=0, b=0, h=0, size=SIZE):
    return keep_mask(k, seed, offset, b, h, (0, size), (0, size))


def test_bytes_are_uniform():
    stats = pytest.importorskip("scipy.stats", reason="takes the chi-square distribution from SciPy")
    drawn = sum((~draw(k, size=256)).astype(np.int64) for k in range(1, 256))  # byte = number of k that it is not below
    for byte in range(4):
        for word in range(4):
            part = drawn.reshape(16, 2, 4, 2, 16, 2, 4, 2)[:, byte >> 1, :, word >> 1, :, byte & 1, :, word & 1]
            counts = np.bincount(part.ravel(), minlength=256)
            assert stats.chisquare(counts).pvalue > 1e-3, (word, byte)
    assert stats.chisquare(np.bincount(drawn.ravel(), minlength=256)).pvalue > 1e-2


@pytest.mark.parametrize("k", [1, 26, 128, 230, 255])
@pytest.mark.parametrize("stream", [{}, {"seed": 2**40}, {"offset": 1}, {"b": 1}, {"h": 9}])
def test_keep_rate(k, stream):
    rate = k / 256
    sigma = np.sqrt(rate * (1 - rate)) / SIZE
    assert abs(draw(k, **stream).mean() - rate) < 4 * sigma


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shift", [1, 2, 7, 8, 15, 16, 64])
def test_rows_and_columns_are_uncorrelated(axis, shift):
    mask = draw()
    assert_independent(mask.take(range(shift, SIZE), axis), mask.take(range(SIZE - shift), axis))


def test_mask_and_its_transpose_are_uncorrelated():
    upper = np.triu_indices(SIZE, 1)
    mask = draw()
    assert_independent(mask[upper], mask.T[upper])


@pytest.mark.parametrize(
    "other",
    [
        {"h": 1},
        {"h": 2**31},
        {"b": 1},
        {"b": 2**31},
        {"seed": 12},
        {"seed": 11 + 2**32},
        {"seed": 11 << 32},
        {"offset": 1},
        {"offset": 2**32},
        {"offset": 2**63},
    ],
)
def test_streams_are_uncorrelated(other):
    assert_independent(draw(), draw(**other))


def test_roles_of_the_indices_differ():
    # Confusing two indices would make two of these equal.
    streams = [{"b": 1}, {"h": 1}, {"offset": 1}, {"offset": 2**32}, {"seed": 1}, {"seed": 2**32}, {"seed": 0}]
    masks = [draw(**({"seed": 0} | stream), size=64) for stream in streams]
    for n, mask in enumerate(masks):
        for other in masks[:n]:
            assert_independent(mask, other)


def assert_independent(x, y):
    """Agreement of fair bits is binomial with rate 1/2."""
    assert abs((x == y).mean() - 0.5) < 4 * 0.5 / np.sqrt(x.size)


# ---- test vectors for every backend ----------------------------------------------------------------------------------

CASES = [  # k, seed, offset, b, h, rows, cols
    (128, 0, 0, 0, 0, (0, 16), (0, 16)),
    (230, 42, 0, 0, 0, (0, 64), (0, 64)),
    (230, 42, 0, 0, 1, (0, 32), (0, 32)),
    (230, 42, 0, 1, 0, (0, 32), (0, 32)),
    (212, 42, 1, 3, 7, (5, 38), (3, 50)),
    (1, 2**32 - 1, 2**32 + 7, 1, 2, (16, 64), (32, 96)),
    (255, 0xFEDCBA9876543210, 0x0123456789ABCDEF, 65535, 127, (1000, 1033), (4095, 4128)),
    (77, 2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1, (131056, 131072), (2**31 - 32, 2**31)),
]


def write_vectors():
    vectors = [
        {
            "k": k,
            "seed": f"{seed:#018x}",
            "offset": f"{offset:#018x}",
            "b": b,
            "h": h,
            "rows": rows,
            "cols": cols,
            "bits": np.packbits(plain_keep_mask(k, seed, offset, b, h, range(*rows), range(*cols)), bitorder="little")
            .tobytes()
            .hex(),
        }
        for k, seed, offset, b, h, rows, cols in CASES
    ]
    about = (
        "Dropout keep masks. rows, cols: [start, stop). bits: the mask row by row, packed 8 elements a byte, least "
        "significant bit first, without padding between rows; 1 = keep. Written by tests/test_philox.py."
    )
    VECTORS.write_text(json.dumps({"about": about, "vectors": vectors}, indent=1) + "\n")


@pytest.mark.parametrize("number", range(len(CASES)))
def test_vectors(number):
    vector = json.loads(VECTORS.read_text())["vectors"][number]
    rows, cols = tuple(vector["rows"]), tuple(vector["cols"])
    shape = rows[1] - rows[0], cols[1] - cols[0]
    packed = np.frombuffer(bytes.fromhex(vector["bits"]), np.uint8)
    expected = np.unpackbits(packed, count=shape[0] * shape[1], bitorder="little").reshape(shape).astype(bool)
    words = (int(vector[name], 16) for name in ("seed", "offset"))
    np.testing.assert_array_equal(keep_mask(vector["k"], *words, vector["b"], vector["h"], rows, cols), expected)


if __name__ == "__main__":
    write_vectors()
