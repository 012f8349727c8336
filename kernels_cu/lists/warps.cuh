// One warp an item, and what its lanes know together.
#pragma once

#include <ptx/bits.cuh>
#include <ptx/shuffle.cuh>
#include <ptx/special_registers.cuh>
#include <ptx/vote.cuh>

__device__ __forceinline__ u32 lane_index() { return thread_index() % 32; }

// Items of this warp: `visit(index)` for each, whatever the size of the grid. All lanes take part.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each_by_warp(i64 items, Visit visit) {
    const i64 step = static_cast<i64>(block_count()) * (kThreads / 32);
    for (i64 n = static_cast<i64>(block_index()) * (kThreads / 32) + thread_index() / 32; n < items; n += step) visit(n);
}

__device__ __forceinline__ i32 sum_of_warp(i32 value) {
#pragma unroll
    for (u32 mask = 1; mask < 32; mask *= 2) value += shuffle_xor(value, mask);
    return value;
}

__device__ __forceinline__ i32 largest_of_warp(i32 value) {
#pragma unroll
    for (u32 mask = 1; mask < 32; mask *= 2) {
        const i32 other = shuffle_xor(value, mask);
        value = other > value ? other : value;
    }
    return value;
}

// The sum of the lanes before this one, and that of all.
struct WarpPrefix {
    i32 before = 0, total;

    __device__ __forceinline__ explicit WarpPrefix(i32 value) : total(value) {
#pragma unroll
        for (u32 mask = 1; mask < 32; mask *= 2) {
            const i32 other = shuffle_xor(total, mask);
            if (lane_index() & mask) before += other;
            total += other;
        }
    }
};

// Which of the lanes marked in `bits` come before this one.
__device__ __forceinline__ i32 rank_of_lane(u32 bits) { return population_count(bits & ((1u << lane_index()) - 1)); }

// Rows of this warp among those of its block: a stretch of neighbours.
struct Stretch {
    i64 begin, end;

    __device__ __forceinline__ Stretch(i64 rows, int warps) {
        const i64 each = (rows + 32 * warps - 1) / (32 * warps) * 32;
        begin = min(each * (thread_index() / 32), rows);
        end = min(begin + each, rows);
    }
};
