// Included before every translation unit of a kernel: CUDA's words, and the functions that NVRTC knows without headers.
// What belongs behind kernels_cu/ptx/ (threadIdx, intrinsics, __shared__, barriers) is absent on purpose.
#pragma once

#include <runtime/api.hpp>

#define __global__
#define __device__
#define __host__
#define EMU_INLINE inline __attribute__((always_inline))
// Calls compile in half the time of what is in place, and run a fifth slower; reports then name no callers.
#ifdef EMU_INLINED
#define __forceinline__ EMU_INLINE
#else
#define __forceinline__ inline
#endif
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))
// __noinline__ stays undefined: it is a word of GCC's attributes.

extern "C" {
int printf(const char* format, ...);

#define EMU_MATH_1(name) \
    double name(double); \
    float name##f(float);
#define EMU_MATH_2(name)          \
    double name(double, double); \
    float name##f(float, float);
EMU_MATH_1(exp) EMU_MATH_1(exp2) EMU_MATH_1(log) EMU_MATH_1(log2) EMU_MATH_1(log1p) EMU_MATH_1(expm1)
EMU_MATH_1(tanh) EMU_MATH_1(sqrt) EMU_MATH_1(fabs) EMU_MATH_1(floor) EMU_MATH_1(ceil) EMU_MATH_1(rint)
EMU_MATH_2(fmax) EMU_MATH_2(fmin) EMU_MATH_2(copysign) EMU_MATH_2(fmod) EMU_MATH_2(pow)
double fma(double, double, double);
float fmaf(float, float, float);
double ldexp(double, int);
float ldexpf(float, int);
#undef EMU_MATH_1
#undef EMU_MATH_2
}

// CUDA has these for both types, in the global namespace.
#define EMU_OVERLOAD_1(name) \
    EMU_INLINE float name(float x) { return name##f(x); }
#define EMU_OVERLOAD_2(name) \
    EMU_INLINE float name(float x, float y) { return name##f(x, y); }
EMU_OVERLOAD_1(exp) EMU_OVERLOAD_1(exp2) EMU_OVERLOAD_1(log) EMU_OVERLOAD_1(log2) EMU_OVERLOAD_1(log1p)
EMU_OVERLOAD_1(expm1) EMU_OVERLOAD_1(tanh) EMU_OVERLOAD_1(sqrt) EMU_OVERLOAD_1(fabs) EMU_OVERLOAD_1(floor)
EMU_OVERLOAD_1(ceil) EMU_OVERLOAD_1(rint)
EMU_OVERLOAD_2(fmax) EMU_OVERLOAD_2(fmin) EMU_OVERLOAD_2(copysign) EMU_OVERLOAD_2(fmod) EMU_OVERLOAD_2(pow)
EMU_INLINE float fma(float x, float y, float z) { return fmaf(x, y, z); }
EMU_INLINE float ldexp(float x, int exponent) { return ldexpf(x, exponent); }
EMU_INLINE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
EMU_INLINE double rsqrt(double x) { return 1.0 / sqrt(x); }
EMU_INLINE bool isnan(float x) { return __builtin_isnan(x); }
EMU_INLINE bool isnan(double x) { return __builtin_isnan(x); }
EMU_INLINE bool isinf(float x) { return __builtin_isinf(x); }
EMU_INLINE bool isinf(double x) { return __builtin_isinf(x); }
#undef EMU_OVERLOAD_1
#undef EMU_OVERLOAD_2

#define EMU_MIN_MAX(type)                                                       \
    EMU_INLINE type min(type a, type b) { return b < a ? b : a; } \
    EMU_INLINE type max(type a, type b) { return a < b ? b : a; }
EMU_MIN_MAX(int) EMU_MIN_MAX(unsigned) EMU_MIN_MAX(long long) EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
EMU_INLINE float min(float a, float b) { return fminf(a, b); }
EMU_INLINE float max(float a, float b) { return fmaxf(a, b); }
EMU_INLINE double min(double a, double b) { return fmin(a, b); }
EMU_INLINE double max(double a, double b) { return fmax(a, b); }

// The last line of a translation unit: how the runtime calls its kernel, and what the host must agree with.
namespace emu {

template <class Params>
void call(void (*kernel)(Params), const void* params) {
    kernel(*static_cast<const Params*>(params));
}

template <class Params>
constexpr unsigned params_bytes(void (*)(Params)) {
    return sizeof(Params);
}

}  // namespace emu

extern "C" __attribute__((visibility("hidden"))) char __ehdr_start[];
extern "C" __attribute__((visibility("hidden"))) char _end[];

#define EMU_ENTRY(kernel, most_threads)                                      \
    extern "C" {                                                             \
    void emu_entry(const void* params) { emu::call(kernel, params); }        \
    extern const unsigned emu_params_bytes = emu::params_bytes(kernel);      \
    extern const unsigned emu_most_threads = most_threads;                   \
    char* emu_image[2] = {__ehdr_start, _end};                               \
    }
