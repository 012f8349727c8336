// PTX ISA, "Parallel Synchronization and Communication Instructions": vote.sync. All 32 lanes take part. Not a memory
// barrier.
#pragma once

// vote.sync.ballot.b32: a bit for each lane in which the condition holds.
__device__ __forceinline__ unsigned int warp_ballot(bool condition) { return __ballot_sync(0xffffffffu, condition); }

// vote.sync.any.pred: whether the condition holds in any lane of the warp.
__device__ __forceinline__ bool warp_any(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }
