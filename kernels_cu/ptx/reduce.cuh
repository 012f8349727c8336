// PTX ISA, "Parallel Synchronization and Communication Instructions": red.add. Relaxed, at the scope of the GPU.
#pragma once

#include <types.cuh>

constexpr int kQuads = 128;  // numbers of a warp, four a lane

// red.global.add.f32: add a lane's four numbers to its own of kQuads in global memory, which are aligned to 16 bytes. Where
// those lie among the kQuads is for load_quads to know: neighbours from sm_90 on, which adds four at once, and elsewhere
// 32 apart, so that a warp's additions are neighbours. All 32 lanes take part.
__device__ __forceinline__ void add_quads(float* quads, u32 lane, const float (&own)[4]) {
#if __CUDA_ARCH__ >= 900
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(quads + 4 * lane)), "f"(own[0]), "f"(own[1]), "f"(own[2]), "f"(own[3])
                 : "memory");
#else
#pragma unroll
    for (int n = 0; n < 4; ++n)
        asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;"
                     :
                     : "l"(__cvta_generic_to_global(quads + 32 * n + lane)), "f"(own[n])
                     : "memory");
#endif
}

// What was added to a lane's own.
__device__ __forceinline__ void load_quads(float (&own)[4], const float* quads, u32 lane) {
#if __CUDA_ARCH__ >= 900
    const float4 four = *reinterpret_cast<const float4*>(quads + 4 * lane);
    own[0] = four.x, own[1] = four.y, own[2] = four.z, own[3] = four.w;
#else
#pragma unroll
    for (int n = 0; n < 4; ++n) own[n] = quads[32 * n + lane];
#endif
}
