// What CuPy's elementwise kernels ask of CUDA, for one thread that does all elements.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __CUDACC_RTC__ 1
#define __device__
#define __global__
#define __host__
#define __forceinline__ inline
#define __popc __builtin_popcount
#define __popcll __builtin_popcountll

using std::abs, std::isfinite, std::isinf, std::isnan, std::max, std::min;

struct HostIndex {
    unsigned x, y, z;
};
static HostIndex blockIdx = {0, 0, 0}, threadIdx = {0, 0, 0}, blockDim = {1, 1, 1}, gridDim = {1, 1, 1};

template <class... Parameters, size_t... I>
void call_kernel(void (*kernel)(Parameters...), void** parameters, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<std::remove_reference_t<Parameters>>*>(parameters[I])...);
}

template <class... Parameters>
void call_kernel(void (*kernel)(Parameters...), void** parameters) {
    call_kernel(kernel, parameters, std::index_sequence_for<Parameters...>());
}
