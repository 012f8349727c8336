// Emulated: the last lane to come counts. Orders no memory.
#pragma once

__device__ EMU_INLINE bool warp_any(bool condition, emu::Site site = emu::here()) {
    return emu_warp_any(condition, site);
}

__device__ EMU_INLINE unsigned int warp_ballot(bool condition, emu::Site site = emu::here()) {
    return emu_warp_ballot(condition, site);
}
