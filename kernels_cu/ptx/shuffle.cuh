// PTX ISA, "Data Movement and Conversion Instructions": shfl.sync. All 32 lanes take part. Not a memory barrier.
#pragma once

#include <types.cuh>

// shfl.sync.bfly: the value of lane (own lane ^ lane_mask). T is float, double, i32 or u32.
template <class T>
__device__ __forceinline__ T shuffle_xor(T value, u32 lane_mask) {
    return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}
