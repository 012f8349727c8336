// Words of the transposed mask: 32 rows x 32 columns of bits at a time.
#include <lists/params.cuh>
#include <lists/warps.cuh>

template <int kThreads>
__device__ __forceinline__ void transpose_words(const ListParams& params) {
    const ListSide &own = params.own, &other = params.other;
    const i64 per_head = static_cast<i64>(other.row_words) * own.row_words;
    for_each_by_warp<kThreads>(per_head * params.batch * params.heads, [&](i64 place) {
        const i64 group = place / per_head;
        const i32 to = static_cast<i32>(place % own.row_words), from = static_cast<i32>(place % per_head / own.row_words);
        const i32 row = 32 * to + lane_index();
        const i64 source = (group * other.rows + row) * other.row_words + from;
        for (int kind = 0; kind < (own.partial_words ? 2 : 1); ++kind) {
            const u32* words = kind ? other.partial_words : other.full_words;
            u32* target = kind ? own.partial_words : own.full_words;
            const u32 word = row < other.rows ? words[source] : 0;
            for (i32 n = 0; n < 32 && 32 * from + n < own.rows; ++n) {
                const u32 column = warp_ballot(word >> n & 1u);
                if (lane_index() == n) target[(group * own.rows + 32 * from + n) * own.row_words + to] = column;
            }
        }
    });
}
