// Building a BlockMask's lists in device memory.
//
// Between a source and the lists stand words: a bit for each block of a row. In them blocks are ascending and unique
// whatever the source is, those that do not exist have no place, and transposing moves bits.
#pragma once

#include <tile/element.cuh>

// Lists to write, for one orientation. Rows are flat: (b * heads + h) * rows + i.
struct ListSide {
    i64* full_indptr;
    i32* full_indices;
    i64* partial_indptr;
    i32* partial_indices;
    i32* bits_id;
    u32* bits;           // (partial_capacity, row_size, words)
    i32* order;          // all rows, those with many blocks first
    u32* full_words;     // (all rows, row_words)
    u32* partial_words;  // the same; null where there are no PARTIAL blocks
    i32* counts;         // blocks of each row: FULL ones of all rows, then PARTIAL ones
    i32 rows;            // block rows of one head
    i32 row_words;
    i32 row_size;
    i32 words;
    i32 last_first;      // of rows with as many blocks, the last of a head come first
    i32 columns;         // block columns
};

struct ListParams {
    ListSide own;
    ListSide other;  // lists that the own ones are the transpose of; null where they are made from words of a source
    i32* no_bad_ids;  // by row, to be cleared: given where the source has no ids
    i64 capacity;
    i64 partial_capacity;
    i32 batch;
    i32 heads;
};

__device__ __forceinline__ i64 all_rows(const ListParams& params) {
    return static_cast<i64>(params.batch) * params.heads * params.own.rows;
}

// Which head a flat row belongs to, and where it lies in it.
struct ListRow {
    i32 batch, head, row;

    __device__ __forceinline__ ListRow(const ListParams& params, i64 flat)
        : batch(static_cast<i32>(flat / params.own.rows / params.heads)),
          head(static_cast<i32>(flat / params.own.rows % params.heads)), row(static_cast<i32>(flat % params.own.rows)) {}

    // Row of an array (batch, head, row, column) of the source.
    __device__ __forceinline__ const u8* of(const Operand& operand) const {
        return operand.data + batch * operand.batch[kBatchDims - 1] + head * operand.head + row * operand.row;
    }
};

__device__ __forceinline__ bool load_bool(const Operand& operand, const u8* row, i64 column) {
    return row[column * operand.column] != 0;
}
