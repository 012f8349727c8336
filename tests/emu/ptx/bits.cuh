// Emulated: GCC's own.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE i32 population_count(u32 bits) { return __builtin_popcount(bits); }

__device__ EMU_INLINE i32 leading_zeros(u32 bits) { return bits == 0 ? 32 : __builtin_clz(bits); }
