// Words of FULL and of PARTIAL blocks from one bool for each score. Beyond the shape there is nothing to see, and nothing
// missing.
#include <lists/dense.cuh>
#include <ptx/barrier.cuh>
#include <ptx/shared_memory.cuh>

// By block of a word: bit 0 for any of its elements that is seen, bit 1 for one that is not.
struct DenseShared {
    u8 seen[32];
};

__device__ __forceinline__ u32 look_at(const DenseParams& params, const DenseBlock& block) {
    bool any = false, missing = false;
    for (i32 r = 0; r < block.rows; ++r)
        for (i32 c = lane_index(); c < block.columns; c += 32) {
            const bool visible = load_bool(params.mask, block.first + r * params.mask.row, c);
            any |= visible;
            missing |= !visible;
        }
    return warp_any(any) | warp_any(missing) << 1;
}

// The 32 blocks of a word, a warp each.
template <int kThreads>
__device__ __forceinline__ void words_of_dense(const DenseParams& params) {
    static_assert(kThreads == 1024, "a warp for each block of a word");
    const ListSide& own = params.lists.own;
    auto& shared = shared_memory<DenseShared>();
    const i64 words = all_rows(params.lists) * own.row_words;
    for (i64 place = block_index(); place < words; place += block_count()) {
        const ListRow row(params.lists, place / own.row_words);
        const u32 warp = thread_index() / 32;
        const u32 seen = look_at(params, {params, row, static_cast<i32>(place % own.row_words * 32 + warp)});
        if (lane_index() == 0) shared.seen[warp] = static_cast<u8>(seen);
        block_sync();
        if (warp == 0) {
            const u8 of_block = shared.seen[lane_index()];
            const u32 full = warp_ballot(of_block == 1), partial = warp_ballot(of_block == 3);
            if (lane_index() == 0) own.full_words[place] = full, own.partial_words[place] = partial;
        }
        block_sync();  // before those of the next word are written
    }
}
