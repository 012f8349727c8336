// PTX ISA, "State Spaces: .shared". All shared memory is dynamic: one allocation, whose layout is a struct of the kernel.
#pragma once

#include <types.cuh>

template <class Plan>
__device__ __forceinline__ Plan& shared_memory() {
    extern __shared__ __align__(128) u8 flashcupy_shared_memory[];
    return *reinterpret_cast<Plan*>(flashcupy_shared_memory);
}
