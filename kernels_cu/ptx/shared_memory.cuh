// PTX ISA, "State Spaces: .shared". All shared memory is dynamic: one allocation, whose layout is a struct of the kernel.
#pragma once

#include <types.cuh>

// cvta.to.shared: the 32-bit address of something in shared memory, for arithmetic that generic pointers take twice for.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// cvta.shared: the other way.
__device__ __forceinline__ const u8* shared_pointer(u32 address) {
    return static_cast<const u8*>(__cvta_shared_to_generic(address));
}

template <class Plan>
__device__ __forceinline__ Plan& shared_memory() {
    extern __shared__ __align__(128) u8 flashcupy_shared_memory[];
    return *reinterpret_cast<Plan*>(flashcupy_shared_memory);
}
