// Emulated in integer arithmetic. NaN: the PTX ISA gives the canonical NaN of the result's type.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE float from_f16(u16 bits) {
    u32 sign = static_cast<u32>(bits & 0x8000u) << 16;
    u32 exponent = (bits >> 10) & 31u;
    u32 mantissa = bits & 0x3ffu;
    if (exponent == 31 && mantissa != 0) return __builtin_bit_cast(float, 0x7fffffffu);
    if (exponent == 31) return __builtin_bit_cast(float, sign | 0x7f800000u);
    if (exponent != 0) return __builtin_bit_cast(float, sign | ((exponent + 112u) << 23) | (mantissa << 13));
    // A subnormal is a multiple of 2^-24, which float32 holds exactly.
    float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return __builtin_bit_cast(float, __builtin_bit_cast(u32, magnitude) | sign);
}

__device__ EMU_INLINE u16 to_f16(float value) {
    u32 bits = __builtin_bit_cast(u32, value);
    u32 sign = (bits >> 16) & 0x8000u;
    u32 magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return 0x7fff;
    if (magnitude >= 0x477ff000u) return static_cast<u16>(sign | 0x7c00u);  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {
        // Below 2^-14 the result is a multiple of 2^-24: adding 0.5 leaves exactly those bits, rounded to nearest even.
        float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
        return static_cast<u16>(sign | (__builtin_bit_cast(u32, shifted) - 0x3f000000u));
    }
    u32 rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<u16>(sign | ((rounded - 0x38000000u) >> 13));
}

__device__ EMU_INLINE float from_bf16(u16 bits) {
    return __builtin_bit_cast(float, static_cast<u32>(bits) << 16);
}

__device__ EMU_INLINE u16 to_bf16(float value) {
    u32 bits = __builtin_bit_cast(u32, value);
    if (value != value) return 0x7fff;
    return static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ EMU_INLINE float float_of_bits(u32 bits) { return __builtin_bit_cast(float, bits); }

__device__ EMU_INLINE u32 bits_of_float(float value) { return __builtin_bit_cast(u32, value); }

__device__ EMU_INLINE u64 bits_of_double(double value) { return __builtin_bit_cast(u64, value); }

__device__ EMU_INLINE u32 pack_f16(float low, float high) {
    return to_f16(low) | static_cast<u32>(to_f16(high)) << 16;
}

__device__ EMU_INLINE u32 pack_bf16(float low, float high) {
    return to_bf16(low) | static_cast<u32>(to_bf16(high)) << 16;
}
