// PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy": cp.async, cp.async.commit_group,
// cp.async.wait_group. From sm_80 on.
#pragma once

#include <types.cuh>

// cp.async.cg.shared.global.L2::128B: 16 bytes to shared memory past the registers and L1. Of the source only `bytes`
// (0 to 16) are read, the rest is zeros. Both addresses are aligned to 16. Until the wait nobody may touch `shared`.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
                 :
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
                   "r"(bytes)
                 : "memory");
}

// cp.async.ca.shared.global.L2::128B: 8 or 4 bytes, through L1, both addresses aligned to as many.
__device__ __forceinline__ void copy_async_8(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8, %2;"
                 :
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
                   "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_4(void* shared, const void* global, u32 bytes) {
    asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 4, %2;"
                 :
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(shared))), "l"(__cvta_generic_to_global(global)),
                   "r"(bytes)
                 : "memory");
}

// cp.async.commit_group: the thread's copies since its last commit are one group, be it an empty one.
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" : : : "memory"); }

// cp.async.wait_group: until at most the kPending youngest groups of this thread are under way. What others copied, and
// who else may read, takes a barrier behind it.
template <int kPending>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(kPending) : "memory");
}
