// From the coordinates of a sequence to addresses.
#pragma once

#include <schedule/sequence.cuh>

// Rows of an operand from which a tile picks some by their coordinates; others than [0, length) read as zeros.
struct Rows {
    const Operand& operand;
    const u8* base;
    i32 length;

    __device__ const u8* row(i32 coordinate) const {
        return static_cast<u32>(coordinate) < static_cast<u32>(length) ? base + coordinate * operand.row : nullptr;
    }
};

__device__ __forceinline__ Rows rows(const Operand& operand, const Work& work, i32 head, const Extent& extent) {
    return {operand, base(operand, work, head) + extent.start * operand.row, extent.length};
}
