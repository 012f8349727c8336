// The pieces of work of block lists: rows with many blocks first, wherever they lie.
#pragma once

#include <schedule/work.cuh>

// One piece a block: a tile of a block row of some head. The hardware starts blocks in their order, each where one has
// ended, so that what is left at the end is short. Heads that share a list come one after the other, all rows of the first
// before those of the next: neighbours share what they walk in L2.
class ListScheduler {
public:
    // `heads` are the launch's: those of lists may be fewer, or, where a head of keys has several of queries, more. Then
    // the first of its lists tells how long a row of keys is taken for.
    __device__ ListScheduler(
        const AttentionParams& params, const BlockLists& lists, i32 tile_rows, i32, i32 heads, Order = Order::kLastFirst)
        : params_(params), lists_(lists), tiles_(lists.row_size / tile_rows), heads_(heads), next_(block_index()) {}

    __device__ bool next(Work& work) {
        if (next_ == kDone) return false;
        u32 rest = next_;
        next_ = kDone;
        const u32 tile = rest % tiles_;
        rest /= tiles_;
        work.chunk = rest % params_.chunks;
        rest /= params_.chunks;
        const u32 rows = lists_.rows, list_heads = lists_.heads, all = lists_.batch * list_heads * rows;
        const u32 row = min(static_cast<u32>(lists_.order[rest % all]), all - 1);
        rest /= all;
        const u32 shared = list_heads < heads_ ? heads_ / list_heads : 1, several = list_heads > heads_ ? list_heads / heads_ : 1;
        const u32 list_head = row / rows % list_heads;
        if (list_head % several != 0) return false;  // the first of a head's lists stands for all
        work.tile = row % rows * tiles_ + tile;
        work.head = list_head / several * shared + rest % shared;
        set_batch(work, lists_.batch == 1 ? rest / shared : row / rows / list_heads, params_.batch_extent);
        return true;
    }

private:
    static constexpr u32 kDone = 0xffffffffu;  // grids end below 2^31
    const AttentionParams& params_;
    const BlockLists& lists_;
    u32 tiles_, heads_, next_;
};
