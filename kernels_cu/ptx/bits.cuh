// PTX ISA, "Integer Arithmetic Instructions": popc, clz.
#pragma once

#include <types.cuh>

// popc.b32: how many bits are set.
__device__ __forceinline__ i32 population_count(u32 bits) { return __popc(bits); }

// clz.b32: zeros above the highest bit that is set; 32 where none is.
__device__ __forceinline__ i32 leading_zeros(u32 bits) { return __clz(static_cast<int>(bits)); }
