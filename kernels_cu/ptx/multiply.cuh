// PTX ISA, "Floating Point Instructions": mul.
#pragma once

// mul.rn.f32: a * b, rounded to nearest. Spelt like this it is never made half of a multiply-add: what is left of the
// product, multiply_add(a, b, -multiply_rounded(a, b)), is exact.
__device__ __forceinline__ float multiply_rounded(float a, float b) {
    float result;
    asm("mul.rn.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
    return result;
}
