"""mma, ldmatrix and vote: fragments by the PTX ISA, arithmetic by the model of tests/emu/README.md, and misuse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from emu import fragments
from emu.device import EmuDevice, EmuError, Settings
from emu.fragments import Fragment
from emu.tiny import run

ORDERS = ("forward", "reverse", "random")
CANONICAL_NAN = 0x7FFFFFFF


@pytest.fixture(params=ORDERS)
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, block_order=request.param))


@pytest.fixture
def plain():
    return EmuDevice(settings=Settings(lane_order="forward", block_order="forward"))


# Layouts.


@pytest.mark.parametrize(
    ("fragment", "name", "by_row"),
    [
        (fragments.A_16_BITS, "SM80_16x8x16 A", False),
        (fragments.B_16_BITS, "SM80_16x8x16 B", True),
        (fragments.A_TF32, "SM80_16x8x8 TF32 A", False),
        (fragments.B_TF32, "SM80_16x8x8 TF32 B", True),
        (fragments.C_FLOAT32, "SM80 C", False),
    ],
)
def test_the_manual_and_cute_agree_on_fragments(fragment, name, by_row):
    shape = fragment.row.max() + 1, fragment.column.max() + 1
    ours = fragment.column + shape[1] * fragment.row if by_row else fragment.row + shape[0] * fragment.column
    np.testing.assert_array_equal(ours, fragments.cute_layout(*fragments.CUTE[name]))
    np.testing.assert_array_equal(np.sort(ours, axis=None), np.arange(shape[0] * shape[1]))


@pytest.mark.parametrize(
    ("fragment", "name"),
    [(fragments.LDMATRIX, "SM75_U32x4_LDSM_N"), (fragments.LDMATRIX_TRANSPOSED, "SM75_U16x8_LDSM_T")],
)
def test_the_manual_and_cute_agree_on_ldmatrix(fragment, name):
    # Registers of 32 bits, matrix by matrix: the first bit of each element.
    bits = fragments.cute_layout(*fragments.CUTE[name]).reshape(32, 4, 2, 16)[..., 0]
    matrix = np.arange(4)[None, :, None]
    ours = ((matrix * 8 + fragment.row[:, None]) * 8 + fragment.column[:, None]) * 16
    np.testing.assert_array_equal(ours, bits)


# Products. A kind: how the elements of a register are stored, and the fragments of A and B.

KINDS: dict[str, tuple[type, Fragment, Fragment]] = {
    "f16": (np.float16, fragments.A_16_BITS, fragments.B_16_BITS),
    "bf16": (ml_dtypes.bfloat16, fragments.A_16_BITS, fragments.B_16_BITS),
    "tf32": (np.float32, fragments.A_TF32, fragments.B_TF32),
}
BODY = """
u32 i = b * 256 + t;
u32 a[4] = {{p.a[4 * i], p.a[4 * i + 1], p.a[4 * i + 2], p.a[4 * i + 3]}};
float* d = p.d + 4 * i;
mma_{kind}(d[0], d[1], d[2], d[3], a, p.b[2 * i], p.b[2 * i + 1]);
"""


def _registers(fragment, matrices, element):
    taken = np.ascontiguousarray(fragment.take(matrices.astype(element, copy=False)))
    return taken.view(np.uint32)


def _mma(device, kind, a, b, c):
    """Each of a[n] @ b[n] + c[n], computed by a warp; eight warps a block."""
    element, fragment_a, fragment_b = KINDS[kind]
    count = len(a)
    padded = -(-count // 8) * 8
    registers = [np.zeros((padded, 32, words), np.uint32) for words in (4, 2, 4)]
    registers[0][:count] = _registers(fragment_a, a, element)
    registers[1][:count] = _registers(fragment_b, b, element)
    registers[2][:count] = _registers(fragments.C_FLOAT32, c, np.float32)
    d = device.from_host(registers[2].view(np.float32))
    given = {"a": device.from_host(registers[0]), "b": device.from_host(registers[1])}
    run(device, BODY.format(kind=kind), 256, padded // 8, d=d, **given)
    return fragments.C_FLOAT32.put(d.get()[:count])


def _zeros(kind, count):
    depth = 8 if kind == "tf32" else 16
    return np.zeros((count, 16, depth)), np.zeros((count, depth, 8)), np.zeros((count, 16, 8), np.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pair_of_elements(plain, kind):
    """One element of A times one of B: by lane and element, so that no layout is used twice in opposite ways."""
    element, fragment_a, fragment_b = KINDS[kind]
    one = np.ones(1, element)
    elements_a, elements_b = fragment_a.row.size, fragment_b.row.size
    hot_a = np.zeros((elements_a, elements_a), element)
    hot_b = np.zeros((elements_b, elements_b), element)
    np.fill_diagonal(hot_a, one), np.fill_diagonal(hot_b, one)
    body = """
    for (u32 n = t / 32; n < p.count; n += 8) {
        u32 l = t % 32; const u32* x = p.a + (b * 32 + l) * 4; const u32* y = p.b + (n * 32 + l) * 2;
        u32 a[4] = {x[0], x[1], x[2], x[3]};
        float d[4] = {};
        mma_KIND(d[0], d[1], d[2], d[3], a, y[0], y[1]);
        for (u32 i = 0; i < 4; ++i) p.d[(b * p.count + n) * 128 + l * 4 + i] = d[i] == 1.0f ? 1 : d[i] == 0.0f ? 0 : 2;
    }
    """.replace("KIND", kind)
    d = plain.empty((elements_a, elements_b, 32, 4), np.uint8)
    a, b = (plain.from_host(hot.view(np.uint32)) for hot in (hot_a, hot_b))
    with plain.using(detect_races=False):
        run(plain, body, 256, elements_a, a=a, b=b, d=d, count=elements_b)
    row, depth_a = fragment_a.row.ravel(), fragment_a.column.ravel()
    depth_b, column = fragment_b.row.ravel(), fragment_b.column.ravel()
    want = np.zeros((elements_a, elements_b, 16, 8), np.uint8)
    at_a, at_b = np.nonzero(depth_a[:, None] == depth_b[None, :])
    want[at_a, at_b, row[at_a], column[at_b]] = 1
    np.testing.assert_array_equal(d.get(), fragments.C_FLOAT32.take(want))


def test_c_and_d_have_one_layout(plain):
    a, b, c = _zeros("f16", 1)
    c[:] = np.arange(128).reshape(16, 8)
    np.testing.assert_array_equal(_mma(plain, "f16", a, b, c), c)


# Arithmetic.


def _exponent(x):
    """Of a float32 number: not below that of the smallest normal one, and far below all others for a zero."""
    return np.where(x == 0, -2000, np.maximum(np.frexp(x)[1] - 1, -126))


def _toward_zero(x):
    """Doubles as float32; what is too large is infinite."""
    unit = np.exp2(np.maximum(np.frexp(x)[1] - 1, -126) - 23.0)
    with np.errstate(over="ignore"):
        return (np.trunc(x / unit) * unit).astype(np.float32)


def _model(kind, a, b, c):
    """What README.md says of mma, in doubles: every number here is one exactly."""
    a, b = (x.astype(KINDS[kind][0]).astype(np.float32) for x in (a, b))
    if kind == "tf32":
        a, b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    block = a.shape[-1] // 2
    for k in (slice(0, block), slice(block, None)):
        x, y = a[:, :, None, k], np.swapaxes(b, 1, 2)[:, None, :, k]
        products = np.where((x == 0) | (y == 0), -4000, _exponent(x) + _exponent(y))
        largest = np.maximum(products.max(-1), _exponent(c))
        unit = np.exp2(np.maximum(largest, -1000) - 24.0)
        total = np.trunc(x.astype(np.float64) * y / unit[..., None]).sum(-1) + np.trunc(c / unit)
        c = _toward_zero(total * unit)
    return c


def _spread(rng, shape, least, most):
    return rng.choice([-1.0, 1.0], shape) * np.exp2(rng.uniform(least, most, shape))


# Logarithms of the least and greatest magnitude of A and B, and of C.
RANGES = {
    "alike": ((-2, 2), (-2, 2)),
    "C is small": ((-2, 2), (-20, -8)),
    "C is large": ((-4, 0), (10, 24)),
    "products far apart": ((-14, 15), (-20, 20)),
    "subnormal halves": ((-24, -14), (-48, -30)),
    "subnormal results": ((-75, -60), (-149, -120)),
    "towards infinity": ((50, 63.9), (120, 127.9)),
}


@pytest.mark.parametrize("ranges", RANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_the_models(device, kind, ranges):
    operands, addend = RANGES[ranges]
    if kind == "f16" and (operands[0] < -24 or operands[1] > 15):
        operands = (-24, 15)
    rng = np.random.default_rng(11)
    a, b, c = _zeros(kind, 24)
    a, b, c = _spread(rng, a.shape, *operands), _spread(rng, b.shape, *operands), _spread(rng, c.shape, *addend)
    for x in (a, b, c):
        x[rng.random(x.shape) < 0.1] = 0
    a[:, 0] = 0
    c = c.astype(np.float32)
    if kind == "tf32":
        a, b = a.astype(np.float32), b.astype(np.float32)
    want = _model(kind, a, b, c)
    if ranges == "towards infinity" and kind != "f16":
        assert np.isinf(want).any()
        assert np.isfinite(want).any()
        assert not (np.isinf(c).any())
        assert not (np.isnan(want).any())
    np.testing.assert_array_equal(_mma(device, kind, a, b, c), want)


@pytest.mark.parametrize("kind", KINDS)
def test_sums_are_near_the_true_ones(plain, kind):
    """Against float64, by what truncation can lose: a unit for each addend of a block, and one for its sum."""
    rng = np.random.default_rng(12)
    a, b, c = _zeros(kind, 64)
    a, b = (rng.standard_normal(x.shape).astype(KINDS[kind][0]).astype(np.float64) for x in (a, b))
    if kind == "tf32":
        a, b = ((x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
        a, b = a.astype(np.float64), b.astype(np.float64)
    c = rng.standard_normal(c.shape).astype(np.float32)
    magnitude = np.abs(a) @ np.abs(b) + np.abs(c)
    addends = a.shape[-1] // 2 + 1
    bound = 2 * (addends * 2.0**-24 + 2.0**-23) * magnitude
    error = np.abs(_mma(plain, kind, a, b, c) - (a @ b + c))
    assert np.all(error <= bound)
    assert error.max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_addition_truncates(plain, kind):
    """Where IEEE addition would round up: 1 + 3 * 2^-25, and the same below zero."""
    a, b, c = _zeros(kind, 1)
    a[0, :2, 0], b[0, 0, :] = [2.0**-10 * 1.5, -(2.0**-10) * 1.5], 2.0**-14
    c[0, :2, :] = [[1.0], [-1.0]]
    assert np.float32(1 + 1.5 * 2.0**-24) > 1
    np.testing.assert_array_equal(_mma(plain, kind, a, b, c)[0, :2], c[0, :2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_keeps_one_more_bit(plain, kind):
    """Two products of half a unit: together a unit within a block, each nothing on its own in two."""
    depth = 8 if kind == "tf32" else 16
    a, b, c = _zeros(kind, 2)
    for n, second in enumerate((depth // 2 - 1, depth // 2)):
        a[n, 0, [0, second]], b[n, [0, second], 0] = 2.0**-10, 2.0**-14
        c[n, 0, 0] = 1
    got = _mma(plain, kind, a, b, c)[:, 0, 0]
    np.testing.assert_array_equal(got, np.float32([1 + 2.0**-23, 1]))


def test_tf32_ignores_the_lower_13_bits(plain):
    rng = np.random.default_rng(13)
    a, b, c = _zeros("tf32", 16)
    a, b = (rng.standard_normal(x.shape).astype(np.float32) for x in (a, b))
    cut_a, cut_b = ((x.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for x in (a, b))
    np.testing.assert_array_equal(_mma(plain, "tf32", a, b, c), _mma(plain, "tf32", cut_a, cut_b, c))
    # Dropped, not rounded.
    a, b, c = _zeros("tf32", 1)
    a[0, 0, 0], b[0, 0, 0] = 1 + 2.0**-10 - 2.0**-23, 1
    assert _mma(plain, "tf32", a, b, c)[0, 0, 0] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_infinities_and_nan(device, kind):
    a, b, c = _zeros(kind, 1)
    a[:], b[:], c[:] = 1, 1, 1
    a[0, 1, 3], a[0, 2, 4], a[0, 3, 0] = np.inf, -np.inf, np.nan
    b[0, 3, 5], b[0, 2, 6] = 0, np.inf
    c[0, 9, :], c[0, 2, 7], c[0, 10, 1] = -np.inf, np.inf, np.nan
    with np.errstate(invalid="ignore"):
        want = (a @ b + c).astype(np.float32)
    got = _mma(device, kind, a, b, c)
    nan = np.isnan(want)
    assert nan.sum() > 8
    assert np.isinf(want).sum() > 8
    np.testing.assert_array_equal(got[~nan], want[~nan])
    np.testing.assert_array_equal(got[nan].view(np.uint32), CANONICAL_NAN)


# ldmatrix and vote.

LDMATRIX = """
for (u32 n = 0; n < 8; ++n) s.x[t * 8 + n] = p.x[t * 8 + n];
SYNC
u32 to[4];
load_matrices{suffix}(to, s.x + p.row[t] * 8);
for (u32 m = 0; m < 4; ++m) p.out[t * 4 + m] = to[m];
"""


@pytest.mark.parametrize(("suffix", "fragment"), [("", "LDMATRIX"), ("_transposed", "LDMATRIX_TRANSPOSED")])
def test_ldmatrix(device, suffix, fragment):
    # Each warp its own rows, in any order.
    rng = np.random.default_rng(14)
    x = rng.permutation(65536)[: 64 * 8].astype(np.uint16)
    row = np.concatenate([rng.permutation(32), 32 + rng.permutation(32)]).astype(np.uint32)
    out = device.empty((2, 32, 4), np.uint32)
    body = LDMATRIX.replace("SYNC", "warp_sync();").replace("{suffix}", suffix)
    shared = "alignas(16) u16 x[512];"
    run(device, body, 64, 1, shared, x=device.from_host(x), row=device.from_host(row), out=out)
    matrices = x.reshape(64, 8)[row].reshape(2, 4, 8, 8)
    want = np.moveaxis(getattr(fragments, fragment).take(matrices), 1, 2)
    np.testing.assert_array_equal(out.get().view(np.uint16).reshape(2, 32, 4, 2), want)


ROWS = "alignas(16) u32 x[260];"  # the last of 65 rows is nobody's
FILL = "u32 to[4]; for (u32 n = 0; n < 4; ++n) s.x[t * 4 + n] = t;\n"
# kind of error: what is wrong, what is right; 64 threads, two warps.
MISUSE = {
    "race: rows of other lanes, written without a barrier": (
        "warp_sync(); s.x[t * 4] = 1; load_matrices(to, s.x + (t ^ 1) * 4);",
        "warp_sync(); s.x[t * 4] = 1; warp_sync(); load_matrices(to, s.x + (t ^ 1) * 4);",
    ),
    "race: the own row, which other lanes take": (
        "load_matrices(to, s.x + t * 4);",
        "warp_sync(); load_matrices(to, s.x + t * 4);",
    ),
    "race: rows of another warp": (
        "warp_sync(); load_matrices_transposed(to, s.x + (t ^ 32) * 4);",
        "block_sync(); load_matrices_transposed(to, s.x + (t ^ 32) * 4);",
    ),
    "race: a row is written again before all lanes have read": (
        "warp_sync(); load_matrices(to, s.x + t * 4); s.x[t * 4] = to[0];",
        "warp_sync(); load_matrices(to, s.x + t * 4); warp_sync(); s.x[t * 4] = to[0];",
    ),
    "misaligned: half a row on": (
        "warp_sync(); load_matrices(to, s.x + t / 32 * 128 + t % 8 * 4 + (t % 32 == 9 ? 2 : 0));",
        "warp_sync(); load_matrices(to, s.x + t / 32 * 128 + t % 8 * 4 + (t % 32 == 9 ? 4 : 0));",
    ),
    "bounds: behind shared memory": (
        "block_sync(); load_matrices(to, s.x + (t == 40 ? 260 : 252));",
        "block_sync(); load_matrices(to, s.x + (t == 40 ? 248 : 252));",
    ),
    "bounds: an array": (
        "block_sync(); load_matrices(to, t == 40 ? p.out : s.x);",
        "block_sync(); load_matrices(to, t == 40 ? s.x + 4 : s.x);",
    ),
    "uninitialised: a row that nobody has written": (
        "block_sync(); load_matrices(to, s.x + (t == 40 ? 256 : 252));",
        "if (t < 4) s.x[256 + t] = t; block_sync(); load_matrices(to, s.x + (t == 40 ? 256 : 252));",
    ),
    "divergence: ldmatrix without all lanes": (
        "block_sync(); if (t == 9) return; load_matrices(to, s.x);",
        "block_sync(); if (t < 32) return; load_matrices(to, s.x);",
    ),
    "divergence: mma without all lanes": (
        "if (t >= 40) return; float d = 0; mma_f16(d, d, d, d, to, 0, 0);",
        "if (t >= 32) return; float d = 0; mma_f16(d, d, d, d, to, 0, 0);",
    ),
    "divergence: two kinds of mma": (
        "float d = 0; if (t == 9) mma_f16(d, d, d, d, to, 0, 0); else mma_bf16(d, d, d, d, to, 0, 0);",
        "float d = 0; if (t < 32) mma_f16(d, d, d, d, to, 0, 0); else mma_bf16(d, d, d, d, to, 0, 0);",
    ),
    "divergence: a vote without all lanes": (
        "if (t == 9) return; to[0] = warp_any(t);",
        "if (t < 32) return; to[0] = warp_any(t);",
    ),
    "divergence: two kinds of vote": (
        "to[0] = t % 32 == 9 ? warp_any(t) : warp_ballot(t);",
        "to[0] = warp_ballot(t);",
    ),
    "race: a vote orders no memory": (
        "warp_any(true); to[0] = s.x[(t ^ 1) * 4];",
        "warp_any(true); warp_sync(); to[0] = s.x[(t ^ 1) * 4];",
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse(device, case):
    wrong, right = MISUSE[case]
    end = "\nif (to[0] == 12345) p.out[t] = 1;"
    out = device.empty((256,), np.uint32)
    run(device, FILL + right + end, 64, 1, ROWS, 1040, out=out)
    with pytest.raises(EmuError, match=f"^{case.partition(':')[0]}: "):
        run(device, FILL + wrong + end, 64, 1, ROWS, 1040, out=out)


def test_warp_any(device):
    conditions = np.zeros((33, 2, 32), np.uint32)
    conditions[np.arange(32), 0, np.arange(32)] = 2
    out = device.empty(conditions.shape, np.uint32)
    body = "for (u32 n = 0; n < 33; ++n) p.out[n * 64 + t] = warp_any(p.x[n * 64 + t] != 0);"
    run(device, body, 64, 1, x=device.from_host(conditions), out=out)
    np.testing.assert_array_equal(out.get(), np.broadcast_to(conditions.any(-1, keepdims=True), out.shape))


def test_warp_ballot(device):
    conditions = (np.random.default_rng(0).random((5, 2, 32)) < 0.5).astype(np.uint32)
    conditions[0] = 1
    out = device.empty(conditions.shape, np.uint32)
    body = "for (u32 n = 0; n < 5; ++n) p.out[n * 64 + t] = warp_ballot(p.x[n * 64 + t] != 0);"
    run(device, body, 64, 1, x=device.from_host(conditions), out=out)
    expected = (conditions << np.arange(32, dtype=np.uint32)).sum(-1, keepdims=True)
    np.testing.assert_array_equal(out.get(), np.broadcast_to(expected, out.shape))
