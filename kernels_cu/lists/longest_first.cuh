// The order in which rows are computed: those with many blocks first, so that none of them is left when all others are
// done. Rows of about as many blocks stay neighbours, which share what they read in L2.
#pragma once

#include <lists/params.cuh>
#include <lists/warps.cuh>
#include <ptx/barrier.cuh>

// Counts that differ by less than a quarter count as the same: four classes for each power of two.
constexpr int kClasses = 128;
__device__ __forceinline__ i32 class_of(i32 count) {
    if (count < 4) return count;
    const int log = 31 - leading_zeros(count);
    return 4 * (log - 1) + (count >> (log - 2) & 3);
}

template <int kWarps>
struct OrderShared {
    i32 start[kClasses];          // of a class in the order
    i32 counts[kWarps][kClasses]; // rows of a warp's stretch, then where they go
};

// The row at a place of the plain order.
__device__ __forceinline__ i64 plain_row(const ListSide& own, i64 place) {
    return own.last_first ? place / own.rows * own.rows + own.rows - 1 - place % own.rows : place;
}

// Rows of each class among 32 neighbours: `visit(class, lanes)`, classes descending.
template <class Visit>
__device__ __forceinline__ void for_each_class(i32 own_class, Visit visit) {
    bool left = own_class >= 0;
    for (;;) {
        const i32 next = largest_of_warp(left ? own_class : -1);
        if (next < 0) return;
        const u32 lanes = warp_ballot(left && own_class == next);
        visit(next, lanes);
        left = left && own_class != next;
    }
}

// Stable counting sort by class, one block. The order of a class is that of its rows in the plain order.
template <int kWarps>
__device__ __forceinline__ void order_rows(const ListSide& own, i64 rows, OrderShared<kWarps>& shared) {
    const Stretch own_rows(rows, kWarps);
    const i64 begin = own_rows.begin, end = own_rows.end;
    i32* counts = shared.counts[thread_index() / 32];
    const auto class_at = [&](i64 place) -> i32 {
        if (place >= end) return -1;
        const i64 row = plain_row(own, place);
        return class_of(own.counts[row] + own.counts[rows + row]);
    };
    for (i32 n = lane_index(); n < kClasses; n += 32) counts[n] = 0;
    warp_sync();
    for (i64 first = begin; first < end; first += 32) {
        for_each_class(class_at(first + lane_index()), [&](i32 which, u32 lanes) {
            if (lane_index() == 0) counts[which] += population_count(lanes);
        });
    }
    block_sync();
    for (i32 which = thread_index(); which < kClasses; which += 32 * kWarps) {
        i32 sum = 0;
        for (int warp = 0; warp < kWarps; ++warp) {
            const i32 count = shared.counts[warp][which];
            shared.counts[warp][which] = sum;
            sum += count;
        }
        shared.start[which] = sum;
    }
    block_sync();
    if (thread_index() == 0) {
        i32 before = 0;
        for (int which = kClasses - 1; which >= 0; --which) {
            const i32 count = shared.start[which];
            shared.start[which] = before;
            before += count;
        }
    }
    block_sync();
    for (i64 first = begin; first < end; first += 32) {
        for_each_class(class_at(first + lane_index()), [&](i32 which, u32 lanes) {
            const i64 to = shared.start[which] + counts[which];
            warp_sync();  // before the count moves on
            if (lanes >> lane_index() & 1u) own.order[to + rank_of_lane(lanes)] = static_cast<i32>(plain_row(own, first + lane_index()));
            if (lane_index() == 0) counts[which] += population_count(lanes);
            warp_sync();
        });
    }
}
