// Emulated: each addition at once, in the order in which lanes and blocks run.
#pragma once

#include <types.cuh>

constexpr int kQuads = 128;

namespace emu {

struct alignas(16) Quad {
    float at[4];
};

// From sm_90 on four are added, and read, at once. Binding the reference checks the address, and reads nothing.
EMU_INLINE void require_aligned(const float* quads) {
    [[maybe_unused]] const Quad& first = *reinterpret_cast<const Quad*>(quads);
}

}  // namespace emu

__device__ EMU_INLINE void add_quads(float* quads, u32 lane, const float (&own)[4]) {
    emu::require_aligned(quads);
    for (int n = 0; n < 4; ++n) {
        u32 bits;
        __builtin_memcpy(&bits, &own[n], 4);
        emu_atomic(quads + 32 * n + lane, emu::Atomic::add_f32, bits);
    }
}

__device__ EMU_INLINE void load_quads(float (&own)[4], const float* quads, u32 lane) {
    emu::require_aligned(quads);
    for (int n = 0; n < 4; ++n) own[n] = quads[32 * n + lane];
}
