// PTX ISA, "Special Registers": %tid, %ctaid, %nctaid. Blocks and grids of this library have one dimension.
#pragma once

#include <types.cuh>

__device__ __forceinline__ u32 thread_index() { return threadIdx.x; }

// %tid, read anew at each use: what a loop computes from it is not kept over the loop, in registers that it lacks.
__device__ __forceinline__ u32 thread_index_anew() {
    u32 thread;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
    return thread;
}

__device__ __forceinline__ u32 block_index() { return blockIdx.x; }

__device__ __forceinline__ u32 block_count() { return gridDim.x; }
