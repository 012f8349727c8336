// Emulated: the fiber waits until all others came; both order memory for the race detector.
#pragma once

__device__ EMU_INLINE void block_sync(emu::Site site = emu::here()) { emu_block_sync(site); }

__device__ EMU_INLINE void warp_sync(emu::Site site = emu::here()) { emu_warp_sync(site); }
