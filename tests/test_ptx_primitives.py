"""The wrappers of kernels_cu/ptx/ themselves, by tests of those of the emulator; and what the interpreter reports."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from emu.arrays import EmuArray
from emu.device import EmuDevice, EmuError
from emu.tiny import run
from oracles import nvrtc_library
from ptx.backend import TARGETS
from ptx.device import PtxDevice

# The same tests, with the fixtures of this module.
from test_emu_copies import (
    test_a_ring_of_stages,
    test_copies_of_less_than_sixteen_bytes,
    test_the_rest_of_the_sixteen_bytes_is_zeros,
)
from test_emu_mma import (  # noqa: F401
    test_c_and_d_have_one_layout,
    test_every_pair_of_elements,
    test_infinities_and_nan,
    test_ldmatrix,
    test_sums_are_near_the_true_ones,
    test_tf32_ignores_the_lower_13_bits,
    test_warp_any,
    test_warp_ballot,
)
from test_emu_primitives import (  # noqa: F401
    test_approximations,
    test_bits_of_a_double_are_its_bits,
    test_bits_of_a_float_are_its_bits,
    test_block_sync,
    test_conversion_from_float32_rounds_to_nearest_even,
    test_conversion_of_nan_is_canonical,
    test_conversion_to_float32_is_exact,
    test_counting_bits,
    test_multiply_high,
    test_multiply_rounded,
    test_packing_puts_the_first_into_the_lower_half,
    test_quads_of_warps_and_blocks_add_up,
    test_shared_memory_is_nan_before_each_block,
    test_shuffle_xor,
    test_special_registers,
    test_warp_sync,
)

pytestmark = pytest.mark.slow  # NVRTC compiles each, in up to a second


_OF_SM80 = (
    test_copies_of_less_than_sixteen_bytes,
    test_the_rest_of_the_sixteen_bytes_is_zeros,
    test_a_ring_of_stages,
    test_c_and_d_have_one_layout,
    test_every_pair_of_elements,
    test_sums_are_near_the_true_ones,
    test_tf32_ignores_the_lower_13_bits,
    test_infinities_and_nan,
    test_packing_puts_the_first_into_the_lower_half,
)


@pytest.fixture(params=TARGETS)
def device(request):
    late = request.node.function is test_copies_that_are_late_show_a_wait_that_lacks
    if request.param == "sm75" and (late or request.node.function in _OF_SM80):
        pytest.skip("the instruction is of newer GPUs")
    target = TARGETS[request.param]
    nvrtc_library(target.compiler)
    return PtxDevice(target)


plain = device


# Bodies that write numbers of one type to `o`. g++ compiles them too: what both compute is the same, as no product is
# there to be added to something.
SAME = {
    "integers": (
        "i64",
        """
        i32 a = p.x[2 * t], w = p.x[2 * t + 1]; u32 c = a, d = w; i64 e = p.z[2 * t], f = p.z[2 * t + 1];
        u64 g = e, h = f; o[0] = a + w; o[1] = a * w; o[2] = w ? a / w : 7; o[3] = w ? a % w : 7;
        o[4] = d ? c / d : 7; o[5] = d ? c % d : 7;
        o[6] = e * f; o[7] = f ? e / f : 7; o[8] = h ? g % h : 7; o[9] = g >> (d % 64); o[10] = e >> (d % 64);
        o[11] = e << (c % 64); o[12] = a >> (d % 32); o[13] = c >> (d % 32); o[14] = c << (d % 32); o[15] = a < w;
        o[16] = c < d; o[17] = e <= f; o[18] = g > h; o[19] = min(a, w); o[20] = max(c, d); o[21] = a == w ? e : f;
        o[22] = static_cast<i64>(a) * w; o[23] = static_cast<u64>(c) * d; o[24] = static_cast<signed char>(a);
        o[25] = static_cast<u8>(a) * static_cast<u8>(w); o[26] = (a & w) | (c ^ d); o[27] = ~e & f; o[28] = -a;
        o[29] = static_cast<short>(w); o[30] = (c >> 5 & 0x3ff) | (d << 10); o[31] = a < 0 ? -a : a;
        """,
    ),
    "floats": (
        "float",
        """
        float a = p.f[2 * t], w = p.f[2 * t + 1]; i32 c = p.x[2 * t];
        o[0] = a + w; o[1] = a - w; o[2] = a * w; o[3] = a / w; o[4] = fmaf(a, w, 3.0f); o[5] = fabsf(a); o[6] = -a;
        o[7] = fminf(a, w); o[8] = fmaxf(a, w); o[9] = a < w; o[10] = !(a < w); o[11] = a == w; o[12] = a != w;
        o[13] = a >= w ? a : w; o[14] = !(a >= w) ? a : w; o[15] = c; o[16] = static_cast<u32>(c); o[17] = isnan(a);
        o[18] = isinf(w); o[19] = static_cast<double>(a) + w; o[20] = fabsf(a) < 1e9f ? static_cast<i32>(a) : 5;
        o[21] = 1.0f / w; o[22] = sqrtf(fabsf(a)); o[23] = a <= w ? 1.5f : -0.0f;
        """,
    ),
    "doubles": (
        "double",
        """
        double a = p.d[2 * t], w = p.d[2 * t + 1]; i64 c = p.z[2 * t];
        o[0] = a + w; o[1] = a - w; o[2] = a * w; o[3] = a / w; o[4] = fma(a, w, 3.0); o[5] = fabs(a); o[6] = -a;
        o[7] = fmin(a, w); o[8] = fmax(a, w); o[9] = a < w; o[10] = !(a < w); o[11] = a == w; o[12] = a != w;
        o[13] = a >= w ? a : w; o[14] = c; o[15] = static_cast<u64>(c); o[16] = isnan(a); o[17] = static_cast<float>(a);
        o[18] = fabs(a) < 1e9 ? static_cast<i64>(a) : 5; o[19] = fma(a, w, -(a * w)); o[20] = sqrt(fabs(a));
        """,
    ),
    "ways apart": (
        "i64",
        """
        i32 a = p.x[2 * t]; u32 turns = p.x[2 * t + 1] & 15; i64 sum = 0, kept[4] = {1, 2, 3, 4};
        for (u32 n = 0; n < turns; ++n) {
            if (n % 3 == t % 3) continue;
            if (sum > 1000000) break;
            for (u32 m = 0; m < (a + n & 7); ++m) sum = sum * 3 + kept[m + n & 3]++;
        }
        s.row[t] = sum;
        if (t % 5 == 0) sum += 1;
        else sum -= a;
        block_sync();
        o[0] = sum; o[1] = s.row[63 - t]; o[2] = shuffle_xor(a, 5); o[3] = kept[turns & 3];
        switch (a & 7) {
            case 0: o[4] = 5; break;
            case 1: o[4] = 2; break;
            case 2: o[4] = -a; break;
            default: o[4] = 9;
        }
        block_sync();
        if (t >= 32 && a & 1) return;
        s.row[t] = o[3];
        o[5] = 4;
        """,
    ),
}


def _given(device, rng):
    x = rng.integers(-(2**31), 2**31, 128).astype(np.int32)
    x[:8], x[8:40] = [0, 1, -1, 2**31 - 1, -(2**31), 31, 32, 7], rng.integers(-9, 9, 32)
    z = rng.integers(-(2**63), 2**63 - 1, 128)
    z[:40] = x[:40]
    d = rng.standard_normal(128) * 10.0 ** rng.integers(-9, 9, 128)
    d[:10] = [0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, 1.0, 5e-324, 1e300, 0.5]
    f = d.astype(np.float32)
    f[6] = np.float32(1e-40)
    return {name: device.from_host(value) for name, value in {"x": x, "z": z, "d": d, "f": f}.items()}


@pytest.mark.parametrize("name", SAME)
def test_the_same_as_by_another_compiler(device, name):
    kind, body = SAME[name]
    results = []
    for one in (device, EmuDevice()):
        out = one.from_host(np.zeros((64, 32), {"i64": np.int64, "float": np.float32, "double": np.float64}[kind]))
        text = f"{kind}* o = p.out + 32 * t;\n{body}"
        with np.errstate(over="ignore"):
            given = _given(one, np.random.default_rng(21))
        with one.using(detect_races=False):
            run(one, text, 64, 1, "i64 row[64];", 512, out=out, **given)
        results.append(out.get())
    got, want = results
    np.testing.assert_array_equal(got, want)  # any NaN is as good as another
    zeros = (want == 0) & (kind != "i64")
    zeros[:, 7:9] = False  # of two zeros C's fmin and fmax take either
    np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(want[zeros]))


MISUSE = {
    "bounds: past the end": ("p.x[p.n] = 1;", "p.x[p.n - 1] = 1;"),
    "bounds: before the start": ("p.x[0] = p.x[-1];", "p.x[0] = p.x[0];"),
    "bounds: past shared memory": ("s.row[t + 1] = 1;", "s.row[t] = 1;"),
    "misaligned: a word from any byte": (
        "p.x[0] = *reinterpret_cast<u32*>(reinterpret_cast<u8*>(p.x) + p.n);",
        "p.x[0] = *reinterpret_cast<u32*>(reinterpret_cast<u8*>(p.x) + p.n - 1);",
    ),
    "deadlock: a shuffle without all lanes": ("if (t != 9) p.x[0] = shuffle_xor(t, 1);", "p.x[0] = shuffle_xor(t, 1);"),
    "bounds: an address that no memory has": ("*reinterpret_cast<u32*>(p.n - p.n - 8) = 1;", ""),
    "bounds: a copy that nobody waits for": (
        """
#if __CUDA_ARCH__ >= 800
        copy_async_4(s.row, p.x + p.n, 4);
#else
        p.x[p.n] = 1;
#endif
        """,
        "",
    ),
    "divergence: ldmatrix without all lanes": (
        "u32 to[4]; if (t != 9) { load_matrices(to, s.row); p.x[0] = to[0]; }",
        "u32 to[4]; load_matrices(to, s.row); p.x[0] = to[0];",
    ),
    "unknown: an instruction that nobody has asked for": ('asm volatile("nanosleep.u32 1; brkpt;");', ""),
}


@pytest.mark.parametrize("case", MISUSE)
def test_mistakes(device, case):
    wrong, right = MISUSE[case]
    x = device.from_host(np.zeros(9, np.uint32))
    run(device, right, 64, 1, "alignas(16) u32 row[64];", 256, x=x, n=9)
    with pytest.raises(EmuError, match=f"{case.partition(':')[0]}: "):
        run(device, wrong, 64, 1, "alignas(16) u32 row[64];", 256, x=x, n=9)


def test_extremes_of_zeros_and_nan(device):
    """By the PTX manual: a number beside NaN, and -0 below +0."""
    x = np.float32([0.0, -0.0, np.nan, 1.0])
    out = device.empty((4, 4, 2), np.float32)
    body = "p.out[2 * t] = fminf(p.x[t / 4], p.x[t % 4]); p.out[2 * t + 1] = fmaxf(p.x[t / 4], p.x[t % 4]);"
    run(device, body, 16, x=device.from_host(x), out=out)
    least, most = np.moveaxis(out.get(), -1, 0)
    np.testing.assert_array_equal(np.signbit(least[:2, :2]), [[False, True], [True, True]])
    np.testing.assert_array_equal(np.signbit(most[:2, :2]), [[False, False], [False, True]])
    for extreme in (least, most):
        np.testing.assert_array_equal(extreme[2, [0, 1, 3]], x[[0, 1, 3]])
        assert extreme[2, 2].view(np.uint32) == 0x7FFFFFFF


def test_a_nan_that_is_made_has_all_bits_but_the_sign(device):
    out = device.empty((3,), np.uint32)
    body = """
    float x = p.x[0];
    p.out[0] = bits_of_float(x - x); p.out[1] = bits_of_float(x * 0.0f); p.out[2] = bits_of_float(fmaf(x, 0.0f, 1.0f));
    """
    run(device, body, 1, x=device.from_host(np.float32([np.inf])), out=out)
    np.testing.assert_array_equal(out.get(), np.uint32(0x7FFFFFFF))


def test_memory_that_is_read_only(device):
    own = np.zeros(9, np.uint32)
    own.flags.writeable = False
    with pytest.raises(EmuError, match=r"bounds: write"):
        run(device, "p.x[t] = 1;", 1, x=EmuArray(own, device))


@pytest.mark.parametrize("blocks", [1, 3])
def test_warps_apart_show_a_barrier_that_lacks(device, blocks):
    body = "s.row[t] = t; SYNC p.out[b * 256 + t] = s.row[255 - t];"
    for order, synced in itertools.product(("forward", "random"), (True, False)):
        out = device.empty((blocks, 256), np.uint32)
        text = body.replace("SYNC", "block_sync();" if synced else "")
        with device.using(lane_order=order):
            run(device, text, 256, blocks, "u32 row[256];", 1024, out=out)
        right = np.array_equal(out.get(), np.tile(np.arange(256)[::-1], (blocks, 1)))
        assert right == (synced or order == "forward")


def test_copies_that_are_late_show_a_wait_that_lacks(device):
    source = device.from_host(np.arange(64, dtype=np.uint32))
    body = "copy_async_4(s.row + t, p.source + t, 4); copy_async_commit(); WAIT block_sync(); p.out[t] = s.row[63 - t];"
    for copies, waits in itertools.product(("eager", "lazy"), (False, True)):
        out = device.empty((64,), np.uint32)
        text = body.replace("WAIT", "copy_async_wait<0>();" if waits else "")
        with device.using(copies=copies):
            run(device, text, 64, 1, "u32 row[64];", 256, source=source, out=out)
        assert np.array_equal(out.get(), np.arange(64)[::-1]) == (waits or copies == "eager")
