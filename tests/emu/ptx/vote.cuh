// Emulated: the last lane to come counts. Orders no memory.
#pragma once

__device__ __forceinline__ bool warp_any(bool condition, emu::Site site = emu::here()) {
    return emu_warp_any(condition, site);
}
