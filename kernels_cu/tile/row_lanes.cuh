// Reductions over the lanes that share a row.
#pragma once

#include <ptx/shuffle.cuh>
#include <tile/math.cuh>

template <class Tiles, class Acc>
__device__ __forceinline__ Acc row_sum(Acc value) {
#pragma unroll
    for (u32 mask = Tiles::kLanes / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}

template <class Tiles, class Acc>
__device__ __forceinline__ Acc row_max(Acc value) {
#pragma unroll
    for (u32 mask = Tiles::kLanes / 2; mask > 0; mask /= 2) value = larger(value, shuffle_xor(value, mask));
    return value;
}
