// Where the rows of one batch entry lie, and how its diagonals are aligned.
#pragma once

#include <schedule/work.cuh>
#include <tile/element.cuh>

// Rows of one side: [start, start + length) are used, [length, allotted) belong to the sequence and get zeros.
struct Extent {
    i32 start;
    i32 length;
    i32 allotted;
};

struct Sequence {
    Extent q, k;
    i32 offset;  // query i stands on the diagonal at key i + offset
};

__device__ __forceinline__ i32 clamp(i64 value, i32 least, i32 most) {
    return value < least ? least : value > most ? most : static_cast<i32>(value);
}

// Values in device memory are not checked by the host: whatever they are, rows stay inside the arrays.
__device__ __forceinline__ Extent extent(
    const Operand& cu_seqlens, const Operand& lengths, const Work& work, i32 longest, i32 rows) {
    Extent result = {0, longest, longest};
    if (given(cu_seqlens)) {
        const u8* entry = cu_seqlens.data + work.batch * cu_seqlens.row;
        result.start = clamp(load_index(cu_seqlens, entry), 0, rows);
        const i32 end = clamp(load_index(cu_seqlens, entry + cu_seqlens.row), result.start, rows);
        result.allotted = end - result.start < longest ? end - result.start : longest;
        result.length = result.allotted;
    }
    if (given(lengths)) result.length = clamp(load_index(lengths, base(lengths, work, 0)), 0, result.allotted);
    return result;
}

__device__ __forceinline__ Sequence sequence(const AttentionParams& params, const Work& work) {
    Sequence result;
    result.q = extent(params.cu_seqlens_q, params.q_lengths, work, params.q_len, params.q_rows);
    result.k = extent(params.cu_seqlens_k, params.kv_lengths, work, params.kv_len, params.kv_rows);
    result.offset = params.top_left ? 0 : result.k.length - result.q.length;
    return result;
}
