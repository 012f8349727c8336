// Bit patterns of PARTIAL blocks from one bool for each score.
#include <lists/dense.cuh>

// How many PARTIAL blocks of a row come before one; -1 if that is none.
__device__ __forceinline__ i32 rank_of(const u32* words, i32 block) {
    const u32 word = words[block / 32];
    if (!(word >> (block % 32) & 1u)) return -1;
    i32 rank = population_count(word & ((1u << (block % 32)) - 1));
    for (i32 n = 0; n < block / 32; ++n) rank += population_count(words[n]);
    return rank;
}

// A warp for each block there could be: those that are PARTIAL are few, and anywhere.
template <int kThreads>
__device__ __forceinline__ void pack_bits(const DenseParams& params) {
    const ListSide& own = params.lists.own;
    for_each_by_warp<kThreads>(all_rows(params.lists) * own.columns, [&](i64 place) {
        const i64 flat = place / own.columns;
        const i32 column = static_cast<i32>(place % own.columns);
        const i32 rank = rank_of(own.partial_words + flat * own.row_words, column);
        const i64 id = own.partial_indptr[flat] + rank;
        if (rank < 0 || id >= params.lists.partial_capacity) return;
        const DenseBlock block(params, {params.lists, flat}, column);
        u32* bits = own.bits + id * own.row_size * own.words;
        for (i32 r = 0; r < own.row_size; ++r)
            for (i32 n = 0; n < own.words; ++n) {
                const i32 c = 32 * n + lane_index();
                const bool inside = r < block.rows && c < block.columns;
                const u32 word = warp_ballot(inside && load_bool(params.mask, block.first + r * params.mask.row, c));
                if (lane_index() == 0) bits[r * own.words + n] = word;
            }
    });
}
