// PTX ISA, "Warp Level Matrix Multiply-Accumulate Instructions": ldmatrix. All 32 lanes take part. From sm_75 on.
#pragma once

#include <types.cuh>

// ldmatrix.m8n8.x4.b16: four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 m + r gives the address of row
// r of matrix m: 16 bytes, aligned to 16. Lane 4 r + c gets columns 2 c and 2 c + 1 of row r of matrix m in to[m].
__device__ __forceinline__ void load_matrices(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
}

// ldmatrix.trans: the same rows; lane 4 r + c gets rows 2 c and 2 c + 1 of column r of matrix m in to[m].
__device__ __forceinline__ void load_matrices_transposed(u32 (&to)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<u32>(__cvta_generic_to_shared(row)))
                 : "memory");
}
