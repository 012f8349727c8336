// Arrays with a place for every 16 query rows of a head, the last ones of a sequence filled up: what lies in them is
// aligned, whatever row a packed sequence starts at.
#pragma once

#include <schedule/band.cuh>

struct Segments {
    u8* first;  // segment 0 of the sequence
    i64 step;

    __device__ __forceinline__ u8* at(i32 row) const { return first + static_cast<u32>(row) / kSegment * step; }
};

// Packed sequences start at a segment of their own: there are at most as many as rows / 16, and one more for each.
__device__ __forceinline__ Segments segments(
    const AttentionParams& params, const Operand& operand, const Work& work, i32 head, const Extent& q) {
    const i64 first = given(params.cu_seqlens_q) ? q.start / kSegment + work.batch : 0;
    return {base(operand, work, head) + first * operand.row, operand.row};
}
