// PTX ISA, "Floating Point Instructions": ex2.approx.ftz.f32, rcp.approx.ftz.f32. Subnormal operands and results are
// zeros of the same sign.
#pragma once

// ex2.approx.ftz.f32: 2^x, with a relative error of at most 2^-22; minus infinity gives +0.
__device__ __forceinline__ float exp2_approximate(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// rcp.approx.ftz.f32: 1 / x within 1 ulp; a zero gives the infinity of its sign.
__device__ __forceinline__ float reciprocal_approximate(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}
