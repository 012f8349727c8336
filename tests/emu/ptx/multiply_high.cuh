// Emulated.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE u32 multiply_high(u32 a, u32 b) {
    return static_cast<u32>((static_cast<u64>(a) * b) >> 32);
}
