// Emulated: thread and block numbers are the fiber's.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE u32 thread_index() { return emu_thread_index(); }

__device__ EMU_INLINE u32 thread_index_anew() { return emu_thread_index(); }

__device__ EMU_INLINE u32 block_index() { return emu_block_index(); }

__device__ EMU_INLINE u32 block_count() { return emu_block_count(); }
