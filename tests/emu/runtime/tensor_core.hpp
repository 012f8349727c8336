// mma: D = A B + C of a warp, in integer arithmetic on eight columns at once.
//
// What tensor cores compute is not documented. This is the A100 as its behaviour was measured (README.md has the
// references): products are exact; a block of them (8 of 16 bits, 4 of tf32) and C are aligned to the largest exponent
// among them, cut off one bit below the last of a float32 there, and added; the sum is cut off to a float32, which is
// the C of the next block. Cut off is toward zero.
#pragma once

#include <cstring>

#include "machine.hpp"

namespace emu {

constexpr u32 mma_columns = 8, mma_rows = 16, most_depth = 16;

typedef int Ints __attribute__((vector_size(4 * mma_columns)));
typedef float Reals __attribute__((vector_size(4 * mma_columns)));

constexpr int exponent_of_zero = -1000;  // below that of every product
constexpr u32 canonical_nan = 0x7fffffff;

#define EMU_VECTOR inline __attribute__((always_inline))

EMU_VECTOR Ints greater(Ints a, Ints b) { return a > b ? a : b; }
EMU_VECTOR Ints below_32(Ints shift) { return shift > 31 ? Ints{} + 31 : shift; }
EMU_VECTOR Ints signed_as(Ints magnitude, Ints sign) { return (magnitude ^ sign) - sign; }  // sign: 0 or -1

EMU_VECTOR bool any(Ints condition) {
    u64 parts[mma_columns / 2];
    memcpy(parts, &condition, sizeof parts);
    return (parts[0] | parts[1] | parts[2] | parts[3]) != 0;
}

EMU_VECTOR Ints is_special(Ints bits) { return (bits & 0x7f800000) == 0x7f800000; }  // infinity or NaN

// Operands of A or B as float32 bits: magnitude * 2^(exponent - 10), sign as 0 or -1.
struct Decoded {
    Ints magnitude, exponent, sign, bits;
};

// Halves are float32 with another exponent range: a shift, and a product by a power of two that is exact.
EMU_VECTOR Ints float32_of_f16(Ints half) {
    Ints magnitude = (half & 0x7fff) << 13;
    Ints scaled = reinterpret_cast<Ints>(reinterpret_cast<Reals>(magnitude) * 0x1p112f);
    Ints special = magnitude >= 0x0f800000 ? magnitude | 0x7f800000 : scaled;
    return special | (half & 0x8000) << 16;
}

template <Mma kind>
EMU_VECTOR Decoded decoded(Ints raw) {
    Ints bits = kind == Mma::f16 ? float32_of_f16(raw) : kind == Mma::bf16 ? raw << 16 : raw & ~0x1fff;
    Ints field = bits >> 23 & 255, fraction = bits >> 13 & 0x3ff;
    Ints magnitude = field > 0 ? fraction | 0x400 : fraction;
    Ints exponent = field > 0 ? field - 127 : Ints{} - 126;
    return {magnitude, magnitude == 0 ? Ints{} + exponent_of_zero : exponent, bits >> 31, bits};
}

template <Mma kind>
constexpr u32 depth_of = kind == Mma::tf32 ? 8 : 16;

// The fragments of a warp as matrices: rows of A in two halves of eight columns, rows of B and of C.
struct Operands {
    alignas(32) int a[mma_rows][most_depth];
    alignas(32) int b[most_depth][mma_columns];
    alignas(32) int c[mma_rows][mma_columns];
};

// PTX ISA, the figures of fragments of mma.m16n8k16 and mma.m16n8k8.
template <Mma kind>
EMU_VECTOR void gather(Operands& operands, const Thread* lanes) {
    for (u32 lane = 0; lane < warp_size; ++lane) {
        const u32* words = lanes[lane].words;
        u32 g = lane / 4, t = lane % 4;
#pragma GCC unroll 4
        for (u32 i = 0; i < 4; ++i) {
            u32 row = g + i % 2 * 8;
            if constexpr (kind == Mma::tf32) {
                operands.a[row][t + i / 2 * 4] = static_cast<int>(words[i]);
            } else {
                operands.a[row][2 * t + i / 2 * 8] = words[i] & 0xffff;
                operands.a[row][2 * t + i / 2 * 8 + 1] = words[i] >> 16;
            }
            operands.c[g + i / 2 * 8][2 * t + i % 2] = static_cast<int>(words[6 + i]);
        }
        for (u32 i = 0; i < 2; ++i) {
            if constexpr (kind == Mma::tf32) {
                operands.b[t + i * 4][g] = static_cast<int>(words[4 + i]);
            } else {
                operands.b[2 * t + i * 8][g] = words[4 + i] & 0xffff;
                operands.b[2 * t + i * 8 + 1][g] = words[4 + i] >> 16;
            }
        }
    }
}

static void scatter(const Operands& operands, Thread* lanes) {
    for (u32 lane = 0; lane < warp_size; ++lane)
        for (u32 i = 0; i < 4; ++i)
            lanes[lane].words[6 + i] = operands.c[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

// magnitude * 2^scale toward zero, where that is subnormal or too large; the latter is infinity.
EMU_COLD static u32 float32_at_the_edge(u32 magnitude, int scale) {
    u64 power_bits = static_cast<u64>(scale + 1023) << 52;
    double power, value;
    memcpy(&power, &power_bits, sizeof power);
    value = magnitude * power;
    if (value >= 0x1p128) return 0x7f800000;
    if (value < 0x1p-126) return static_cast<u32>(value * 0x1p149);
    float exact = static_cast<float>(value);  // the magnitude has 24 bits
    u32 bits;
    memcpy(&bits, &exact, sizeof bits);
    return bits;
}

EMU_COLD static Ints sum_at_the_edge(Ints magnitude, Ints scale, Ints inside, Ints result) {
    for (u32 n = 0; n < mma_columns; ++n) {
        if (inside[n] || magnitude[n] == 0) continue;
        u32 bits = magnitude[n];
        while (bits >> 24 != 0) bits = bits >> 1, ++scale[n];
        result[n] = static_cast<int>(float32_at_the_edge(bits, scale[n]));
    }
    return result;
}

// sum * 2^scale, toward zero, as float32 bits.
EMU_VECTOR Ints float32_of_sum(Ints sum, Ints scale) {
    Ints sign = sum >> 31, magnitude = signed_as(sum, sign);
    Reals rounded = __builtin_convertvector(magnitude, Reals);
    Ints back = __builtin_convertvector(rounded, Ints);
    Ints truncated = reinterpret_cast<Ints>(rounded) + (back > magnitude);  // one step down where it was rounded up
    Ints field = (truncated >> 23) + scale;
    Ints inside = (field >= 1) & (field <= 254);
    Ints result = magnitude == 0 ? Ints{} : truncated + (scale << 23);
    if (EMU_UNLIKELY(any(~inside & (magnitude != 0)))) result = sum_at_the_edge(magnitude, scale, inside, result);
    return result | (magnitude == 0 ? Ints{} : sign << 31);
}

struct Row {
    alignas(32) int magnitude[most_depth], exponent[most_depth], sign[most_depth];
};

// One block of products of a row of A with eight columns of B, and C.
template <u32 depth>
EMU_VECTOR Ints block_sum(const Row& a, const Decoded* b, u32 first, Ints c) {
    Ints field = c >> 23 & 255, fraction = c & 0x7fffff;
    Ints magnitude = field > 0 ? fraction | 0x800000 : fraction;
    Ints exponent = field > 0 ? field - 127 : Ints{} - 126;
    exponent = magnitude == 0 ? Ints{} + exponent_of_zero : exponent;
    Ints exponents[depth], largest = exponent;
#pragma GCC unroll 8
    for (u32 k = 0; k < depth; ++k) {
        exponents[k] = b[first + k].exponent + a.exponent[first + k];
        largest = greater(largest, exponents[k]);
    }
    // In units of 2^(largest - 24): C has 23 bits behind its point, a product of two operands 20.
    Ints sum = signed_as((magnitude << 1) >> below_32(largest - exponent), c >> 31);
#pragma GCC unroll 8
    for (u32 k = 0; k < depth; ++k) {
        Ints product = (b[first + k].magnitude * a.magnitude[first + k]) << 4;
        sum += signed_as(product >> below_32(largest - exponents[k]), b[first + k].sign ^ a.sign[first + k]);
    }
    return float32_of_sum(sum, largest - 24);
}

inline bool is_nan(u32 bits) { return (bits & 0x7fffffff) > 0x7f800000; }
inline bool is_infinite(u32 bits) { return (bits & 0x7fffffff) == 0x7f800000; }

// What infinities and NaN make of a block, as IEEE 754 has it; the finite result where there are none.
EMU_COLD static Ints special_sum(const Operands& bits, u32 row, u32 first, u32 depth, Ints c, Ints finite) {
    for (u32 n = 0; n < mma_columns; ++n) {
        u32 addend = c[n];
        bool nan = is_nan(addend), plus = addend == 0x7f800000, minus = addend == 0xff800000;
        for (u32 k = first; k < first + depth; ++k) {
            u32 x = bits.a[row][k], y = bits.b[k][n];
            nan |= is_nan(x) || is_nan(y);
            if (!is_infinite(x) && !is_infinite(y)) continue;
            nan |= x << 1 == 0 || y << 1 == 0;
            ((x ^ y) >> 31 != 0 ? minus : plus) = true;
        }
        if (nan || (plus && minus)) finite[n] = canonical_nan;
        else if (plus || minus) finite[n] = static_cast<int>(plus ? 0x7f800000 : 0xff800000);
    }
    return finite;
}

template <Mma kind>
static void mma(Thread* lanes) {
    constexpr u32 depth = depth_of<kind>, block = depth / 2;
    Operands operands;
    gather<kind>(operands, lanes);
    Decoded b[depth];
    Ints special = {};
    for (u32 k = 0; k < depth; ++k) {
        Ints raw;
        memcpy(&raw, operands.b[k], sizeof raw);
        b[k] = decoded<kind>(raw);
        memcpy(operands.b[k], &b[k].bits, sizeof raw);
        special |= is_special(b[k].bits);
    }
    for (u32 m = 0; m < mma_rows; ++m) {
        Row a;
        Ints special_row = special;
        for (u32 half = 0; half < depth; half += mma_columns) {
            Ints raw;
            memcpy(&raw, operands.a[m] + half, sizeof raw);
            Decoded some = decoded<kind>(raw);
            memcpy(a.magnitude + half, &some.magnitude, sizeof raw);
            memcpy(a.exponent + half, &some.exponent, sizeof raw);
            memcpy(a.sign + half, &some.sign, sizeof raw);
            memcpy(operands.a[m] + half, &some.bits, sizeof raw);
            special_row |= is_special(some.bits);
        }
        bool is_special_row = any(special_row);
        Ints c;
        memcpy(&c, operands.c[m], sizeof c);
        for (u32 first = 0; first < depth; first += block) {
            Ints sum = block_sum<block>(a, b, first, c);
            if (EMU_UNLIKELY(is_special_row || any(is_special(c))))
                sum = special_sum(operands, m, first, block, c, sum);
            c = sum;
        }
        memcpy(operands.c[m], &c, sizeof c);
    }
    scatter(operands, lanes);
}

static void mma_of_warp(Mma kind, Thread* lanes) {
    if (kind == Mma::f16) mma<Mma::f16>(lanes);
    else if (kind == Mma::bf16) mma<Mma::bf16>(lanes);
    else mma<Mma::tf32>(lanes);
}

}  // namespace emu
