// Words of FULL blocks from tables of their numbers. Numbers that name no block, and repeated ones, are left out and counted.
#include <lists/params.cuh>
#include <lists/warps.cuh>

struct IdsParams {
    ListParams lists;
    Operand ids;     // (batch, head, block row, slot); negative: unused
    Operand counts;  // slots in use (batch, head, block row); not given: all
    i32* bad_ids;    // by row
    i32 slots;
};

// Every lane writes words of its own: no two lanes meet.
template <int kThreads>
__device__ __forceinline__ void words_of_ids(const IdsParams& params) {
    const ListSide& own = params.lists.own;
    for_each_by_warp<kThreads>(all_rows(params.lists), [&](i64 flat) {
        const ListRow row(params.lists, flat);
        u32* words = own.full_words + flat * own.row_words;
        for (i32 n = lane_index(); n < own.row_words; n += 32) words[n] = 0;
        const i64 asked = given(params.counts) ? load_index(params.counts, row.of(params.counts)) : params.slots;
        const i32 used = static_cast<i32>(min(max(asked, 0ll), static_cast<i64>(params.slots)));
        i32 bad = lane_index() == 0 && asked != used;
        const u8* ids = row.of(params.ids);
        for (i32 slot = 0; slot < used; ++slot) {
            const i64 id = load_index(params.ids, ids + slot * params.ids.column);
            if (id < 0) continue;
            bad += id >= own.columns && lane_index() == 0;
            if (id >= own.columns || id / 32 % 32 != lane_index()) continue;
            const u32 bit = 1u << (id % 32), word = words[id / 32];
            bad += (word & bit) != 0;
            words[id / 32] = word | bit;
        }
        bad = sum_of_warp(bad);
        if (lane_index() == 0) params.bad_ids[flat] = bad;
    });
}
