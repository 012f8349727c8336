// Kernel parameters, shared with flashcupy/cuda/params.py: a test holds its layout to this compiler's own offsets.
// All strides are in bytes and may be 0 (broadcast) or negative.
#pragma once

#include <types.cuh>

constexpr int kBatchDims = 4;
constexpr i32 kFar = 1 << 30;  // a window side without bound; rows and columns stay below a quarter of it

enum DType : u32 { kFloat16, kBFloat16, kFloat32, kFloat64, kBool, kInt32, kInt64 };

// One array: where its element (batch, head, row, column) lies.
struct Operand {
    u8* data;  // null: not given
    i64 batch[kBatchDims];
    i64 head;
    i64 row;
    i64 column;
    u32 dtype;
    u32 unaligned;  // elements lie at any address
};

// BlockMask's lists, for one orientation: rows are the blocks of the tile's owner, columns those it walks.
struct BlockLists {
    const i64* full_indptr;
    const i32* full_indices;
    const i64* partial_indptr;
    const i32* partial_indices;
    const i32* bits_id;
    const u32* bits;       // (patterns, row_size, words)
    const i32* order;      // all rows, in the order in which they are computed
    i64 capacity;          // FULL blocks that the arrays hold: rows that start or end beyond are incomplete
    i64 partial_capacity;
    i64 patterns;
    i32 batch;             // 1 where all entries share the lists
    i32 heads;             // 1, or a divisor of the query heads
    i32 rows;              // block rows of one head
    i32 row_size;
    i32 column_size;
    i32 words;
};

struct AttentionParams {
    // (batch, head, row, column) of each is what it sounds like; lse-like arrays have no columns, slopes and sinks no rows.
    Operand q, k, v;
    Operand mask, bias, slopes, sinks;
    Operand q_lengths, kv_lengths;        // by batch
    Operand cu_seqlens_q, cu_seqlens_k;   // by row: sequence number; given where rows are packed
    Operand out, lse;
    Operand stats;  // (…, row, 2): reference and 1 / row sum, in the accumulation type; P = exp2(s - reference) / row sum
    Operand dout, dlse, delta;
    Operand row_terms, dq_parts;  // of tensor cores' backward, by segment of 16 queries: schedule/segments.cuh
    Operand dq, dk, dv, dbias;
    Operand sink_rows;  // each row's share of dsinks
    BlockLists lists, transposed_lists;
    const u64* seed_words;  // (seed, offset) in device memory, or null: then these
    u64 seed;
    u64 offset;
    double scale;
    double softcap;
    i32 batch_extent[kBatchDims];
    i32 batch;
    i32 q_heads;
    i32 kv_heads;
    i32 q_len;   // the longest sequence where rows are packed
    i32 kv_len;
    i32 q_rows;  // rows there are in q: all packed rows, or q_len
    i32 kv_rows;
    i32 head_dim;
    i32 v_dim;
    i32 chunks;  // of the result's columns, each a piece of work
    i32 left;    // window, kFar without bound; causal has right = 0
    i32 right;
    i32 top_left;
    i32 keep_threshold;  // of dropout: keep iff byte < keep_threshold
    i32 bias_batch_extent[kBatchDims];  // extents of dbias, 1 where it broadcasts
    i32 bias_heads, bias_rows, bias_columns;
};
