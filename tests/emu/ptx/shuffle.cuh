// Emulated: the last lane to come hands out the values. Orders no memory.
#pragma once

#include <types.cuh>

template <class T>
__device__ EMU_INLINE T shuffle_xor(T value, u32 lane_mask, emu::Site site = emu::here()) {
    return emu::from_bits<T>(emu_shuffle_xor(emu::bits_of(value), lane_mask, site));
}
