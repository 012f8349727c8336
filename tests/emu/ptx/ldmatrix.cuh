// Emulated: the last lane to come hands out the elements. All lanes read all rows, for the race detector.
#pragma once

#include <types.cuh>

__device__ EMU_INLINE void load_matrices(u32 (&to)[4], const void* row, emu::Site site = emu::here()) {
    emu::Words words = emu_load_matrices(row, false, site);
    to[0] = words.w0, to[1] = words.w1, to[2] = words.w2, to[3] = words.w3;
}

__device__ EMU_INLINE void load_matrices_transposed(u32 (&to)[4], const void* row, emu::Site site = emu::here()) {
    emu::Words words = emu_load_matrices(row, true, site);
    to[0] = words.w0, to[1] = words.w1, to[2] = words.w2, to[3] = words.w3;
}
