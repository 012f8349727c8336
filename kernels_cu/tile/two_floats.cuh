// Numbers of twice float32's digits, for what is an error of all of P where it is rounded: the sum of two floats. A GeForce
// computes 64 times as many floats as doubles, and some lines of doubles a row take longer than the row's copies.
#pragma once

#include <ptx/multiply.cuh>
#include <tile/math.cuh>
#include <tile/sum.cuh>

using TwoFloats = CompensatedSum<float>;

// x * constant; of infinity infinity.
__device__ __forceinline__ TwoFloats multiplied(float x, double constant) {
    const float high = static_cast<float>(constant), low = static_cast<float>(constant - high);
    const float product = multiply_rounded(x, high);
    const float rest = multiply_add(x, low, multiply_add(x, high, -product));
    return {product, rest == rest ? rest : 0};
}

// Natural logarithm of a normal number above 0: x = 2^e * m, m from 2/3 to 4/3, and log m = 2 artanh((m - 1) / (m + 1)).
__device__ __forceinline__ TwoFloats two_logarithms(float x) {
    constexpr u32 kTwoThirds = 0x3f2aaaabu;
    const i32 bits = static_cast<i32>(bits_of_float(x) - kTwoThirds);
    const float m = float_of_bits((static_cast<u32>(bits) & 0x7fffffu) + kTwoThirds);
    const float above = m - 1, below = above + 2, below_low = above - (below - 2);
    const float s = above / below, square = s * s;
    const float s_low = (multiply_add(-s, below, above) - s * below_low) / below;
    float series = 1 / 11.0f;
#pragma unroll
    for (int n = 9; n >= 3; n -= 2) series = multiply_add(square, series, 1 / static_cast<float>(n));
    TwoFloats result = multiplied(static_cast<float>(bits >> 23), kLn2);
    result.add(2 * s);
    result.lost += 2 * multiply_add(s * square, series, s_low);
    return result;
}

// log(2^top * sum), rounded once.
__device__ __forceinline__ float log_of_sum(float top, float sum) {
    if (!(sum <= most<float>())) return top + sum;  // infinite, or NaN
    TwoFloats result = multiplied(top, kLn2);
    result.add(two_logarithms(sum));
    return result.value();
}
__device__ __forceinline__ double log_of_sum(double top, double sum) { return (top + log2(sum)) * kLn2; }
