// How many blocks each row has.
#include <lists/params.cuh>
#include <lists/warps.cuh>

template <int kThreads>
__device__ __forceinline__ void count_blocks(const ListParams& params) {
    const ListSide& own = params.own;
    const i64 rows = all_rows(params);
    for_each_by_warp<kThreads>(rows, [&](i64 row) {
        i32 full = 0, partial = 0;
        for (i32 n = lane_index(); n < own.row_words; n += 32) {
            full += population_count(own.full_words[row * own.row_words + n]);
            if (own.partial_words) partial += population_count(own.partial_words[row * own.row_words + n]);
        }
        full = sum_of_warp(full);
        partial = sum_of_warp(partial);
        if (lane_index() != 0) return;
        own.counts[row] = full, own.counts[rows + row] = partial;
        if (params.no_bad_ids) params.no_bad_ids[row] = 0;
    });
}
