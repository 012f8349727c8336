// Emulated: one allocation for all blocks, filled with NaN before each.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE u32 shared_address(const void* pointer) {
    return static_cast<u32>(static_cast<const u8*>(pointer) - emu_shared_memory(0));
}

__device__ EMU_INLINE const u8* shared_pointer(u32 address) { return emu_shared_memory(0) + address; }

template <class Plan>
__device__ EMU_INLINE Plan& shared_memory() {
    static_assert(alignof(Plan) <= 128, "dynamic shared memory is aligned to 128 bytes");
    return *reinterpret_cast<Plan*>(emu_shared_memory(sizeof(Plan)));
}
