// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": mma.m16n8k16, mma.m16n8k8. All 32 lanes take part.
// From sm_80 on.
//
// D += A B: A of 16 rows by row, B of 8 columns by column, D of 16 x 8 float32. Lane 4 g + t holds
//   d0, d1       D[g][2 t], D[g][2 t + 1];  d2, d3 the same of row g + 8
//   16 bits      a[0] A[g][2 t], A[g][2 t + 1];  a[1] of row g + 8;  a[2], a[3] as these, 8 columns on
//                b0   B[2 t][g], B[2 t + 1][g];  b1 8 rows on. The lower column or row is in the lower half
//   tf32         a[0] A[g][t];  a[1] of row g + 8;  a[2], a[3] as these, 4 columns on
//                b0   B[t][g];  b1 4 rows on
// The asm is not volatile: what it does is in its operands, and the compiler may move it.
#pragma once

#include <types.cuh>

// mma.m16n8k16.f32.f16.f16.f32
__device__ __forceinline__ void mma_f16(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// mma.m16n8k16.f32.bf16.bf16.f32
__device__ __forceinline__ void mma_bf16(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0,
                                         u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// mma.m16n8k8.f32.tf32.tf32.f32: a and b are the bits of float32, whose lower 13 mantissa bits the hardware ignores.
__device__ __forceinline__ void mma_tf32(float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0,
                                         u32 b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d0), "+f"(d1), "+f"(d2), "+f"(d3)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
