// dbias: a block owns a tile of the bias and walks all batch entries and heads (and, where the bias broadcasts over rows or
// columns, all tiles) that share it. Deterministic, without a buffer larger than dbias.
#pragma once

#include <schedule/sequence.cuh>
#include <tile/sum.cuh>

// Which entry of the bias's batch and head, which rows and columns; 0 where it broadcasts.
struct BiasTile {
    Work entry;
    i32 row_tile, column_tile;
};

template <int kOwner, int kWalk>
__device__ __forceinline__ BiasTile bias_tile(const AttentionParams& params) {
    const u32 row_tiles = ceil_div(params.bias_rows, kOwner), column_tiles = ceil_div(params.bias_columns, kWalk);
    u32 rest = block_index();
    BiasTile own;
    own.column_tile = rest % column_tiles;
    rest /= column_tiles;
    own.row_tile = rest % row_tiles;
    rest /= row_tiles;
    own.entry.head = rest % params.bias_heads;
    set_batch(own.entry, rest / params.bias_heads, params.bias_batch_extent);
    return own;
}

__device__ __forceinline__ bool shares_batch(const AttentionParams& params, const BiasTile& own, const Work& work) {
    for (int dim = 0; dim < kBatchDims; ++dim)
        if (params.bias_batch_extent[dim] != 1 && work.batch_index[dim] != own.entry.batch_index[dim]) return false;
    return true;
}

// Each (batch entry, head) whose scores the tile is added to: visit(work, sequence).
template <class Visit>
__device__ __forceinline__ void for_each_sharing(const AttentionParams& params, const BiasTile& own, const Visit& visit) {
    Work work;
    for (i32 batch = 0; batch < params.batch; ++batch) {
        set_batch(work, batch, params.batch_extent);
        if (!shares_batch(params, own, work)) continue;
        const Sequence one = sequence(params, work);
        for (work.head = 0; work.head < params.q_heads; ++work.head)
            if (params.bias_heads == 1 || work.head == own.entry.head) visit(work, one);
    }
}

// The tiles of scores of one of them, a row of tiles at a time: visit(first row, first column, end of the columns).
template <int kOwner, int kWalk, class Visit>
__device__ __forceinline__ void for_each_tile(
    const AttentionParams& params, const BiasTile& own, const Sequence& sequence, const Visit& visit) {
    const i32 first_row = own.row_tile * kOwner, first_column = own.column_tile * kWalk;
    const i32 end_row = params.bias_rows == 1 ? sequence.q.length : min(first_row + 1, sequence.q.length);
    const i32 end_column = params.bias_columns == 1 ? sequence.k.length : first_column + 1;
    for (i32 row = first_row; row < end_row; row += kOwner) visit(row, first_column, end_column);
}

// Each element of the tile of dbias by one thread, which adds up what it broadcasts over; `sum(i, j)` is that of scores
// (i, j) of all tiles.
template <class Acc, int kOwner, int kWalk, int kThreads, class Sum>
__device__ __forceinline__ void store_bias_tile(const AttentionParams& params, const BiasTile& own, const Sum& sum) {
    const bool all_rows = params.bias_rows == 1, all_columns = params.bias_columns == 1;
    const int rows = all_rows ? 1 : kOwner, columns = all_columns ? 1 : kWalk;
    u8* start = base(params.dbias, own.entry, own.entry.head);
    for (int n = thread_index(); n < rows * columns; n += kThreads) {
        const int r = n / columns, c = n % columns;
        const i32 row = own.row_tile * kOwner + r, column = own.column_tile * kWalk + c;
        if (row >= params.bias_rows || column >= params.bias_columns) continue;
        CompensatedSum<Acc> total = {};
        for (int i = r; i < (all_rows ? kOwner : r + 1); ++i)
            for (int j = c; j < (all_columns ? kWalk : c + 1); ++j) total.add(sum(i, j));
        store(params.dbias, start + row * params.dbias.row + column * params.dbias.column, total.value());
    }
}
