"""Each primitive of the emulator against the plain meaning of its PTX instruction, and the seam it sits behind."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest
from emu.device import EmuDevice, EmuError, Settings
from emu.tiny import KERNELS, PTX, run

ORDERS = ("forward", "reverse", "random")


@pytest.fixture(params=ORDERS)
def device(request):
    return EmuDevice(settings=Settings(lane_order=request.param, block_order=request.param))


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (5, 96), (3, 40), (2, 1024)])
def test_special_registers(device, blocks, threads):
    out = device.empty((blocks, threads, 4), np.uint32)
    body = """
    u32* mine = p.out + (b * p.n + t) * 4;
    mine[0] = t; mine[1] = thread_index_anew(); mine[2] = b; mine[3] = block_count();
    """
    run(device, body, threads, blocks, out=out, n=threads)
    b, t = np.indices((blocks, threads))
    np.testing.assert_array_equal(out.get(), np.stack([t, t, b, np.full_like(t, blocks)], -1))


def test_shared_memory_is_one_aligned_struct_of_the_block(device):
    out = device.empty((4, 64), np.float32)
    address = device.empty((4,), np.uint64)
    body = """
    if (t == 0) p.address[b] = reinterpret_cast<u64>(&s);
    s.second[t] = b * 100.0f + t;
    block_sync();
    p.out[b * 64 + t] = s.second[63 - t];
    """
    run(device, body, 64, 4, "u8 first; float second[64];", 260, out=out, address=address)
    np.testing.assert_array_equal(out.get(), np.arange(4)[:, None] * 100.0 + np.arange(63, -1, -1))
    assert np.all(address.get() % 128 == 0)
    with pytest.raises(EmuError, match=r"limits: .* struct of 260 bytes, and the launch asked for 128"):
        run(device, body, 64, 4, "u8 first; float second[64];", 128, out=out, address=address)


def test_shared_memory_is_nan_before_each_block(device):
    out = device.empty((3, 2, 16), np.uint32)
    body = "p.out[b * 32 + t] = __builtin_bit_cast(u32, s.row[t]); block_sync(); s.row[t] = t;"
    with device.using(detect_races=False):
        run(device, body, 32, 3, "float row[32];", out=out)
    assert np.all(np.isnan(out.get().view(np.float32)))


@pytest.mark.parametrize("threads", [1, 32, 33, 96, 1024])
def test_block_sync(device, threads):
    out = device.empty((threads,), np.uint32)
    body = """
    s.row[t] = t;
    for (u32 step = 1; step < 4; ++step) {
        block_sync();
        u32 next = s.row[(t + 1) % p.n];
        block_sync();
        s.row[t] = next;
    }
    p.out[t] = s.row[t];
    """
    run(device, body, threads, 1, "u32 row[1024];", 4096, out=out, n=threads)
    np.testing.assert_array_equal(out.get(), (np.arange(threads) + 3) % threads)


@pytest.mark.parametrize("threads", [32, 96])
def test_warp_sync(device, threads):
    out = device.empty((threads,), np.uint32)
    body = "s.row[t] = t; warp_sync(); p.out[t] = s.row[t ^ 21];"
    run(device, body, threads, 1, "u32 row[96];", out=out)
    np.testing.assert_array_equal(out.get(), np.arange(threads) ^ 21)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint32])
def test_shuffle_xor(device, dtype):
    # Every mask, each warp in its own order; values are raw bits, NaN with payload and signalling among them.
    bits = np.random.default_rng(3).integers(0, 256, (3, 32, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]
    bits[0, :2] = np.array([0xFFF4000000000001, 0x7FA00001], np.uint64).astype(f"u{bits.itemsize}").view(dtype)
    out = device.empty((3, 32, 32), dtype)
    body = """
    for (u32 step = 0; step < 32; ++step) {
        u32 mask = (step + 5 * (t / 32)) % 32;
        p.out[(t / 32 * 32 + mask) * 32 + t % 32] = shuffle_xor(p.x[t], mask);
    }
    """
    run(device, body, 96, 1, x=device.from_host(bits), out=out)
    raw = f"u{bits.itemsize}"
    want = bits[:, np.arange(32)[:, None] ^ np.arange(32)]
    np.testing.assert_array_equal(out.get().view(raw), want.view(raw))


def test_multiply_high(device):
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 2**32, (2, 4096), np.uint32)
    a[:4], b[:4] = [0, 2**32 - 1, 2**32 - 1, 1 << 31], [2**32 - 1, 2**32 - 1, 1, 2]
    out = device.empty(a.shape, np.uint32)
    body = "u32 i = b * 256 + t; p.out[i] = multiply_high(p.x[i], p.y[i]);"
    run(device, body, 256, 16, x=device.from_host(a), y=device.from_host(b), out=out)
    np.testing.assert_array_equal(out.get(), a.astype(np.uint64) * b >> np.uint64(32))


def test_multiply_rounded(device):
    x, y = np.random.default_rng(5).standard_normal((2, 4096)).astype(np.float32)
    out = device.empty(x.shape, np.float32)
    body = "u32 i = b * 256 + t; p.out[i] = multiply_add(p.x[i], p.y[i], -multiply_rounded(p.x[i], p.y[i]));"
    run(device, body, 256, 16, includes="tile/math.cuh", x=device.from_host(x), y=device.from_host(y), out=out)
    np.testing.assert_array_equal(out.get(), (x.astype(np.float64) * y - x * y).astype(np.float32))


def _convert(device, function, bits, result):
    """Run a conversion on a row of bits, in chunks of 1024; floats travel as they are."""
    x = device.from_host(np.ascontiguousarray(np.resize(bits, -(-bits.size // 1024) * 1024)))
    out = device.empty(x.shape, result)
    run(device, f"u32 i = b * 1024 + t; p.out[i] = {function}(p.x[i]);", 1024, x.size // 1024, x=x, out=out)
    return out.get()[: bits.size]


ALL_16_BITS = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize(("function", "type_16"), [("from_f16", np.float16), ("from_bf16", ml_dtypes.bfloat16)])
def test_conversion_to_float32_is_exact(device, function, type_16):
    values = ALL_16_BITS.view(type_16)
    got = _convert(device, function, ALL_16_BITS, np.float32)
    nan = np.isnan(values.astype(np.float32))
    np.testing.assert_array_equal(got[~nan].view(np.uint32), values[~nan].astype(np.float32).view(np.uint32))
    # cvt gives the canonical NaN; a bfloat16 is not converted but shifted.
    shifted = ALL_16_BITS[nan].astype(np.uint32) << 16
    want = np.full(nan.sum(), 0x7FFFFFFF, np.uint32) if function == "from_f16" else shifted
    np.testing.assert_array_equal(got[nan].view(np.uint32), want)


@pytest.mark.parametrize(("function", "type_16"), [("to_f16", np.float16), ("to_bf16", ml_dtypes.bfloat16)])
def test_conversion_from_float32_rounds_to_nearest_even(device, function, type_16):
    every = ALL_16_BITS.view(type_16).astype(np.float32)
    every = np.sort(every[np.isfinite(every)])
    # What the type holds, the ties between neighbours, and the float32 on either side of each.
    ties = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    exact = np.concatenate([every, ties])
    beside = [np.nextafter(exact, np.float32(way)) for way in (-np.inf, np.inf)]
    random = np.random.default_rng(5).integers(0, 2**32, 1 << 17, np.uint32).view(np.float32)
    edges = np.array([65519.996, 65520, -65520, 3.3961776e38, np.inf, -np.inf, 2**-25, -(2**-25), 1e-45], np.float32)
    values = np.concatenate([exact, *beside, random, edges])
    values = values[~np.isnan(values)]
    with np.errstate(over="ignore"):
        want = values.astype(type_16).view(np.uint16)
    np.testing.assert_array_equal(_convert(device, function, values, np.uint16), want)


@pytest.mark.parametrize("function", ["to_f16", "to_bf16"])
def test_conversion_of_nan_is_canonical(device, function):
    bits = np.array([0x7FC00000, 0x7F800001, 0xFFFFFFFF, 0xFF800001, 0x7FFFE000], np.uint32)
    np.testing.assert_array_equal(_convert(device, function, bits.view(np.float32), np.uint16), np.uint16(0x7FFF))


@pytest.mark.parametrize(("function", "type_16"), [("pack_f16", np.float16), ("pack_bf16", ml_dtypes.bfloat16)])
def test_packing_puts_the_first_into_the_lower_half(device, function, type_16):
    x = np.random.default_rng(6).standard_normal((2, 256)).astype(np.float32)
    x[0, :3], x[1, 3:5] = [1e9, 1e-9, np.inf], [-np.inf, -0.0]
    out = device.empty((256,), np.uint32)
    run(device, f"p.out[t] = {function}(p.x[t], p.x[256 + t]);", 256, x=device.from_host(x), out=out)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out.get().view(np.uint16).reshape(256, 2), x.T.astype(type_16).view(np.uint16))


def test_bits_of_a_float_are_its_bits(device):
    bits = np.array([0, 1, 0x80000000, 0x7F800001, 0xFFFFFFFF, 0x3F800000], np.uint32)
    out = device.empty((6,), np.uint32)
    body = "p.out[t] = bits_of_float(float_of_bits(p.x[t]));"
    run(device, body, 6, x=device.from_host(bits), out=out)
    np.testing.assert_array_equal(out.get(), bits)


def test_bits_of_a_double_are_its_bits(device):
    numbers = np.array([0.0, -0.0, 1.5, -np.inf, np.nan, 5e-324])
    out = device.empty((6,), np.uint64)
    run(device, "p.out[t] = bits_of_double(p.x[t]);", 6, x=device.from_host(numbers), out=out)
    np.testing.assert_array_equal(out.get(), numbers.view(np.uint64))


def test_counting_bits(device):
    words = np.array([0, 1, 0x80000000, 0xFFFFFFFF, 0x00F0F000, 6], np.uint32)
    out = device.empty((6,), np.int32)
    body = "p.out[t] = 100 * population_count(p.x[t]) + leading_zeros(p.x[t]);"
    run(device, body, 6, x=device.from_host(words), out=out)
    expected = [100 * int(word).bit_count() + 32 - int(word).bit_length() for word in words]
    np.testing.assert_array_equal(out.get(), expected)


TINY = 2.0**-127  # a subnormal number


@pytest.mark.parametrize(
    ("function", "exact", "edges"),
    [
        ("exp2_approximate", np.exp2, {-np.inf: 0, np.inf: np.inf, TINY: 1, -TINY: 1, -126: 2.0**-126, -126.5: 0}),
        ("reciprocal_approximate", np.reciprocal, {-np.inf: -0.0, 0.0: np.inf, -TINY: -np.inf, -(2.0**127): -0.0}),
    ],
)
def test_approximations(device, function, exact, edges):
    """Within the manual's bounds, and where it says what comes out, that."""
    x = np.random.default_rng(8).uniform(-120, 120, 1024).astype(np.float32)
    x[: len(edges)] = list(edges)
    x[len(edges)] = np.nan
    out = device.empty(x.shape, np.float32)
    run(device, f"p.out[t] = {function}(p.x[t]);", 1024, x=device.from_host(x), out=out)
    got, rest = out.get(), slice(len(edges) + 1, None)
    np.testing.assert_array_equal(got[: len(edges)].view(np.uint32), np.float32(list(edges.values())).view(np.uint32))
    assert np.isnan(got[len(edges)])
    np.testing.assert_allclose(got[rest], exact(x[rest].astype(np.float64)), rtol=2.0**-22)


def test_atomics_update_and_return_the_old_value(device):
    body = """
    u32 bits = __builtin_bit_cast(u32, 0.5f);
    p.old[b * 64 + t] = emu_atomic(p.count, emu::Atomic::add_i32, 1);
    emu_atomic(p.sum, emu::Atomic::add_f32, bits);
    emu_atomic(p.most, emu::Atomic::max_u32, b * 64 + t);
    """
    count, most, total = (device.from_host(np.zeros(1, kind)) for kind in (np.uint32, np.uint32, np.float32))
    old = device.empty((256,), np.uint32)
    run(device, body, 64, 4, old=old, count=count, sum=total, most=most)
    np.testing.assert_array_equal(np.sort(old.get()), np.arange(256))
    assert (count.get()[0], most.get()[0], total.get()[0]) == (256, 255, 128.0)


def test_quads_of_warps_and_blocks_add_up(device):
    """Whole numbers, whose sums are exact in any order: each lane's own four come back, whoever else added to them."""
    x = np.random.default_rng(9).integers(-999, 1000, (5, 3, 2, 32, 4)).astype(np.float32)  # block, warp, quads, lane
    start = np.arange(256, dtype=np.float32)
    sums, out = device.from_host(start), device.empty((2, 32, 4), np.float32)
    body = """
    u32 lane = t % 32;
    for (u32 n = 0; n < 2; ++n) {
        const float* x = p.x + (((b * 3 + t / 32) * 2 + n) * 32 + lane) * 4;
        const float own[4] = {x[0], x[1], x[2], x[3]};
        add_quads(p.sums + n * kQuads, lane, own);
    }
    """
    run(device, body, 96, 5, x=device.from_host(x), sums=sums)
    body = """
    for (u32 n = 0; n < 2; ++n) {
        float own[4];
        load_quads(own, p.sums + n * kQuads, t);
        for (u32 i = 0; i < 4; ++i) p.out[(n * 32 + t) * 4 + i] = own[i];
    }
    """
    run(device, body, 32, sums=sums, out=out)
    added = out.get() - x.sum((0, 1))
    # What was there before tells where: each of the 128 in one lane's hands, once.
    np.testing.assert_array_equal(np.sort(added.reshape(2, 128)), start.reshape(2, 128))


def test_quads_are_atomic_and_stay_inside_their_array(device):
    sums = device.from_host(np.zeros(128, np.float32))
    body = "const float own[4] = {1, 2, 3, 4}; add_quads(p.sums, t, own);"
    run(device, body, 32, 7, sums=sums)
    np.testing.assert_array_equal(np.sort(sums.get()), np.repeat([7, 14, 21, 28], 32))
    with pytest.raises(EmuError, match=r"^bounds: "):
        run(device, body, 32, sums=sums[4:])
    with pytest.raises(EmuError, match=r"^race: "):
        run(device, body + " p.sums[t] = 0;", 32, 2, sums=sums)


@pytest.mark.parametrize("call", ["const float own[4] = {}; add_quads", "float own[4]; load_quads"])
def test_quads_are_aligned_to_sixteen_bytes(device, call):
    sums = device.from_host(np.zeros(160, np.float32))
    name, arguments = call.rpartition(" ")[2], {"add_quads": "p.sums, t, own", "load_quads": "own, p.sums, t"}
    body = f"{call}({arguments[name]});"
    run(device, body, 32, sums=sums[4:])
    with pytest.raises(EmuError, match=r"^misaligned: "):
        run(device, body, 32, sums=sums[2:])


def test_additions_to_memory_flush_subnormal_numbers(device):
    least = np.finfo(np.float32).smallest_normal
    sums = device.from_host(np.repeat(np.float32([least / 2, -least / 2, least, 0]), 32))
    # Half of the least normal number is 0; and 1.5 of it less 1 of it, half of it, too.
    body = f"const float x = {least}f, own[4] = {{x, -x / 2, -1.5f * x, x / 4}}; add_quads(p.sums, t, own);"
    run(device, body, 32, sums=sums)
    np.testing.assert_array_equal(
        sums.get().reshape(4, 32), np.repeat(np.float32([[least], [0], [0], [0]]), 32, axis=1)
    )


def test_words_of_cuda_without_headers(device):
    out = device.empty((12,), np.float64)
    body = """
    float x = 0.75f; double y = 0.75; double* o = p.out;
    o[0] = exp2f(x); o[1] = exp2(y); o[2] = log2f(x); o[3] = log2(y); o[4] = tanhf(x); o[5] = tanh(y);
    o[6] = fmaf(x, x, x); o[7] = fma(y, y, y); o[8] = fmaxf(x, __builtin_nanf("")); o[9] = fmin(y, 0.5);
    o[10] = min(3, 2) + max(5u, 4u); o[11] = isnan(__builtin_nanf("")) + isinf(x) + (sizeof(exp2(x)) == 4);
    """
    run(device, body, 1, out=out)
    x, y = np.float32(0.75), 0.75
    want = [np.exp2(x), np.exp2(y), np.log2(x), np.log2(y), np.tanh(x), np.tanh(y), 1.3125, 1.3125, 0.75, 0.5, 7, 2]
    np.testing.assert_allclose(out.get(), want, rtol=2.0**-22)


# Template head, result, name and parameters, which may have parentheses of their own: `const u32 (&a)[4]`.
SIGNATURE = re.compile(
    r"(template <[^>]*>\s+)?__device__ __forceinline__ ([\w&* ]+?) (\w+)\(((?:[^()]|\([^()]*\))*)\) \{"
)


def _signatures(path):
    text = re.sub(r"\s+", " ", path.read_text()).replace("EMU_INLINE", "__forceinline__")
    text = text.replace(", emu::Site site = emu::here()", "").replace("emu::Site site = emu::here()", "")
    return {match.groups() for match in SIGNATURE.finditer(text)}


def test_the_seam_has_the_same_functions_on_both_sides():
    files = sorted(path.name for path in PTX.iterdir())
    assert files == sorted(path.name for path in (KERNELS / "ptx").iterdir())
    for name in files:
        ours, theirs = _signatures(PTX / name), _signatures(KERNELS / "ptx" / name)
        assert ours == theirs, name
        assert len(ours) == (KERNELS / "ptx" / name).read_text().count("__device__"), name


# What only kernels_cu/ptx/ may say: behind it the emulator can take over.
ONLY_PTX = re.compile(
    r"\basm\b|__syncthreads|__syncwarp|__shfl|__ballot|__any|__all|__shared__|__cvta|\batomic[A-Z]"
    r"|\b(threadIdx|blockIdx|blockDim|gridDim)\b|__(float|int|uint|double)_as_|__umulhi|__ldg"
)


def test_only_the_seam_says_what_a_cpu_cannot():
    sources = [path for path in KERNELS.rglob("*.cu*") if path.parent.name != "ptx"]
    assert len(sources) > 0
    for path in sources:
        text = re.sub(r"//.*", "", path.read_text())
        assert (word := ONLY_PTX.search(text)) is None, f"{path.name}: {word[0]}"


def test_includes_are_spelt_from_the_root():
    # A quoted or relative one would pass the emulator's ptx/ by, and the digest of sources.
    for path in KERNELS.rglob("*.cu*"):
        for include in re.findall(r"^\s*#\s*include\s+(.*)", path.read_text(), re.MULTILINE):
            assert re.match(r"<[\w/]+\.cuh?>", include), f"{path.name}: {include}"
            assert (KERNELS / include[1 : include.index(">")]).exists(), f"{path.name}: {include}"
