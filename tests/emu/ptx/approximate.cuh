// Emulated: the C library's results, with the zeros of .ftz.
#pragma once

namespace emu {

// A subnormal number is a zero of the same sign.
EMU_INLINE float flushed(float x) {
    return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x;
}

}  // namespace emu

__device__ EMU_INLINE float exp2_approximate(float x) { return emu::flushed(exp2f(emu::flushed(x))); }

__device__ EMU_INLINE float reciprocal_approximate(float x) { return emu::flushed(1.0f / emu::flushed(x)); }
