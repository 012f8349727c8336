// Emulated: the bytes land at the issue or at the wait, as the launch says; for the race detector they are under way
// from the one to the other.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE void copy_async_16(void* shared, const void* global, u32 bytes) {
    emu_copy_async(shared, global, 16, bytes);
}

__device__ EMU_INLINE void copy_async_8(void* shared, const void* global, u32 bytes) {
    emu_copy_async(shared, global, 8, bytes);
}

__device__ EMU_INLINE void copy_async_4(void* shared, const void* global, u32 bytes) {
    emu_copy_async(shared, global, 4, bytes);
}

__device__ EMU_INLINE void copy_async_commit() { emu_copy_async_commit(); }

template <int kPending>
__device__ EMU_INLINE void copy_async_wait() {
    static_assert(kPending >= 0, "a number of groups");
    emu_copy_async_wait(kPending);
}
