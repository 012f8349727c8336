// Where each row's blocks start, and in which order rows are computed. Three blocks: FULL starts, PARTIAL starts, order.
#include <lists/longest_first.cuh>
#include <lists/params.cuh>
#include <lists/warps.cuh>
#include <ptx/barrier.cuh>
#include <ptx/shared_memory.cuh>

template <int kWarps>
union ScanShared {
    i64 sums[kWarps];
    OrderShared<kWarps> order;
};

// indptr[0] = 0, and behind each row the sum of all counts up to it.
template <int kWarps>
__device__ __forceinline__ void scan_counts(i64* indptr, const i32* counts, i64 rows, i64 (&sums)[kWarps]) {
    const Stretch own(rows, kWarps);
    i64 sum = 0;
    for (i64 first = own.begin; first < own.end; first += 32) {
        const i64 row = first + lane_index();
        sum += sum_of_warp(row < own.end ? counts[row] : 0);
    }
    if (lane_index() == 0) sums[thread_index() / 32] = sum;
    block_sync();
    i64 before = 0;
    for (u32 warp = 0; warp < thread_index() / 32; ++warp) before += sums[warp];
    if (thread_index() == 0) indptr[0] = 0;
    for (i64 first = own.begin; first < own.end; first += 32) {
        const i64 row = first + lane_index();
        const i32 count = row < own.end ? counts[row] : 0;
        const WarpPrefix prefix(count);
        if (row < own.end) indptr[row + 1] = before + prefix.before + count;
        before += prefix.total;
    }
}

template <int kThreads>
__device__ __forceinline__ void scan_rows(const ListParams& params) {
    constexpr int kWarps = kThreads / 32;
    const ListSide& own = params.own;
    auto& shared = shared_memory<ScanShared<kWarps>>();
    const i64 rows = all_rows(params);
    if (block_index() == 0) scan_counts(own.full_indptr, own.counts, rows, shared.sums);
    else if (block_index() == 1) scan_counts(own.partial_indptr, own.counts + rows, rows, shared.sums);
    else order_rows(own, rows, shared.order);
}
