// PTX ISA, "Parallel Synchronization and Communication Instructions": vote.sync. All 32 lanes take part. Not a memory
// barrier.
#pragma once

// vote.sync.any.pred: whether the condition holds in any lane of the warp.
__device__ __forceinline__ bool warp_any(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }
