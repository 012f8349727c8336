// Functions of the accumulation type, by overload: CUDA's and C's names differ between float and double.
#pragma once

#include <ptx/convert.cuh>

__device__ __forceinline__ float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double multiply_add(double a, double b, double c) { return fma(a, b, c); }

// The larger one; of NaN and a number the number.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

__device__ __forceinline__ float power_of_two(float x) { return exp2f(x); }
__device__ __forceinline__ double power_of_two(double x) { return exp2(x); }

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

template <class Acc>
__device__ __forceinline__ Acc infinity() { return static_cast<Acc>(float_of_bits(0x7f800000u)); }

// The largest finite number.
template <class Acc>
__device__ __forceinline__ Acc most() { return static_cast<Acc>(1.7976931348623157e308); }
template <>
__device__ __forceinline__ float most<float>() { return float_of_bits(0x7f7fffffu); }

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ double logarithm(double x) { return log(x); }

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;
