// PTX ISA, "Parallel Synchronization and Communication Instructions": bar.sync, bar.warp.sync.
#pragma once

// bar.sync 0: every thread of the block arrives, and sees what the others wrote before.
__device__ __forceinline__ void block_sync() { __syncthreads(); }

// bar.warp.sync: the same within one warp; all 32 lanes take part.
__device__ __forceinline__ void warp_sync() { __syncwarp(); }
