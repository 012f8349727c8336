// One thread an element, over arrays of (batch, head, row, column).
#pragma once

#include <schedule/work.cuh>
#include <tile/element.cuh>

struct Extents {
    i32 batch[kBatchDims];
    i32 heads, rows, columns;
};

__device__ __forceinline__ i64 count(const Extents& extents) {
    i64 elements = static_cast<i64>(extents.heads) * extents.rows * extents.columns;
    for (int dim = 0; dim < kBatchDims; ++dim) elements *= extents.batch[dim];
    return elements;
}

struct Element {
    Work work;  // batch and head
    i32 row, column;
};

__device__ __forceinline__ Element element(const Extents& extents, i64 index) {
    Element result;
    result.column = index % extents.columns;
    index /= extents.columns;
    result.row = index % extents.rows;
    index /= extents.rows;
    result.work.head = index % extents.heads;
    set_batch(result.work, index / extents.heads, extents.batch);
    return result;
}

__device__ __forceinline__ u8* address(const Operand& operand, const Element& at) {
    return base(operand, at.work, at.work.head) + at.row * operand.row + at.column * operand.column;
}

// Elements of this thread: `visit(index)` for each, whatever the size of the grid.
template <int kThreads, class Visit>
__device__ __forceinline__ void for_each(i64 elements, Visit visit) {
    const i64 step = static_cast<i64>(block_count()) * kThreads;
    for (i64 n = static_cast<i64>(block_index()) * kThreads + thread_index(); n < elements; n += step) visit(n);
}
