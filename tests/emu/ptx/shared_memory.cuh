// Emulated: one allocation for all blocks, filled with NaN before each.
#pragma once

#include <types.cuh>

template <class Plan>
__device__ __forceinline__ Plan& shared_memory() {
    static_assert(alignof(Plan) <= 128, "dynamic shared memory is aligned to 128 bytes");
    return *reinterpret_cast<Plan*>(emu_shared_memory(sizeof(Plan)));
}
