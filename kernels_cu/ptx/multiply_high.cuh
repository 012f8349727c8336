// PTX ISA, "Integer Arithmetic Instructions": mul.hi.u32.
#pragma once

#include <types.cuh>

// The upper 32 bits of the 64-bit product.
__device__ __forceinline__ u32 multiply_high(u32 a, u32 b) { return __umulhi(a, b); }
