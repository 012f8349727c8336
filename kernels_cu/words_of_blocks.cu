// Words of FULL blocks from one bool for each block.
#include <lists/params.cuh>
#include <lists/warps.cuh>

struct BlocksParams {
    ListParams lists;
    Operand blocks;  // (batch, head, block row, block column)
};

template <int kThreads>
__device__ __forceinline__ void words_of_blocks(const BlocksParams& params) {
    const ListSide& own = params.lists.own;
    for_each_by_warp<kThreads>(all_rows(params.lists) * own.row_words, [&](i64 place) {
        const ListRow row(params.lists, place / own.row_words);
        const i32 column = static_cast<i32>(place % own.row_words) * 32 + lane_index();
        const bool there = column < own.columns && load_bool(params.blocks, row.of(params.blocks), column);
        const u32 word = warp_ballot(there);
        if (lane_index() == 0) own.full_words[place] = word;
    });
}
