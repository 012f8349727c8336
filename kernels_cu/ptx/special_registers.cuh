// PTX ISA, "Special Registers": %tid, %ctaid, %nctaid. Blocks and grids of this library have one dimension.
#pragma once

#include <types.cuh>

__device__ __forceinline__ u32 thread_index() { return threadIdx.x; }

__device__ __forceinline__ u32 block_index() { return blockIdx.x; }

__device__ __forceinline__ u32 block_count() { return gridDim.x; }
