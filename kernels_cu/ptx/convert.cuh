// PTX ISA, "Data Movement and Conversion Instructions": cvt. 16-bit floats are kept as bits: no header of CUDA is needed.
#pragma once

#include <types.cuh>

// cvt.f32.f16: exact.
__device__ __forceinline__ float from_f16(u16 bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

// cvt.rn.f16.f32: to nearest, ties to even; overflow gives infinity.
__device__ __forceinline__ u16 to_f16(float value) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// A bfloat16 is the upper half of a float32: exact.
__device__ __forceinline__ float from_bf16(u16 bits) { return __uint_as_float(static_cast<u32>(bits) << 16); }

// What cvt.rn.bf16.f32 computes, which only sm_80 and newer have: to nearest, ties to even; NaN gives the canonical NaN.
__device__ __forceinline__ u16 to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    if (value != value) return 0x7fff;
    return static_cast<u16>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// mov.b32: the number with these bits.
__device__ __forceinline__ float float_of_bits(u32 bits) { return __uint_as_float(bits); }

// mov.b32: the bits of this number.
__device__ __forceinline__ u32 bits_of_float(float value) { return __float_as_uint(value); }

// mov.b64: the same of a double.
__device__ __forceinline__ u64 bits_of_double(double value) { return static_cast<u64>(__double_as_longlong(value)); }

// cvt.rn.f16x2.f32: two of to_f16, `low` in the lower half. From sm_80 on.
__device__ __forceinline__ u32 pack_f16(float low, float high) {
    u32 bits;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}

// cvt.rn.bf16x2.f32: two of to_bf16, `low` in the lower half. From sm_80 on.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 bits;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
    return bits;
}
