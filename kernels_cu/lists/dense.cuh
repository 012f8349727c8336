// A mask with one bool for each score, and its blocks.
#pragma once

#include <lists/params.cuh>
#include <lists/warps.cuh>

struct DenseParams {
    ListParams lists;
    Operand mask;  // (batch, head, query row, key column)
    i32 q_len;
    i32 kv_len;
    i32 column_size;
};

// A block of a head: where its first element is, and how much of it lies in the shape.
struct DenseBlock {
    const u8* first;
    i32 rows, columns;

    __device__ __forceinline__ DenseBlock(const DenseParams& params, const ListRow& row, i32 column) {
        const i32 i = row.row * params.lists.own.row_size;
        const i64 j = static_cast<i64>(column) * params.column_size;  // of words' last columns, beyond any block
        rows = min(params.lists.own.row_size, params.q_len - i);
        columns = j < params.kv_len ? min(params.column_size, params.kv_len - static_cast<i32>(j)) : 0;
        first = params.mask.data + row.batch * params.mask.batch[kBatchDims - 1] + row.head * params.mask.head +
                i * params.mask.row + j * params.mask.column;
    }
};
