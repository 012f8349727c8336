// Emulated: the last lane to come computes for all (runtime/tensor_core.hpp). Fragments travel in registers.
#pragma once

#include <types.cuh>

namespace emu {

EMU_INLINE void mma(Mma kind, float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1,
                         Site site) {
    Floats d = emu_mma(kind, a[0], a[1], a[2], a[3], b0, b1, {d0, d1, d2, d3}, site);
    d0 = d.f0, d1 = d.f1, d2 = d.f2, d3 = d.f3;
}

}  // namespace emu

__device__ EMU_INLINE void mma_f16(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1,
                                        emu::Site site = emu::here()) {
    emu::mma(emu::Mma::f16, d0, d1, d2, d3, a, b0, b1, site);
}

__device__ EMU_INLINE void mma_bf16(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1,
                                         emu::Site site = emu::here()) {
    emu::mma(emu::Mma::bf16, d0, d1, d2, d3, a, b0, b1, site);
}

__device__ EMU_INLINE void mma_tf32(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1,
                                         emu::Site site = emu::here()) {
    emu::mma(emu::Mma::tf32, d0, d1, d2, d3, a, b0, b1, site);
}
