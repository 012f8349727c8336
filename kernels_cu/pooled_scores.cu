// Scores of blocks by their means: out = scale * (q . k), where rows of q and k are the means of blocks.
#include <schedule/band.cuh>
#include <tile/fma_tile.cuh>

// A block owns a tile of means of queries, and a chunk of the result's columns is a tile of means of keys.
template <class Tiles>
__device__ __forceinline__ void pooled_scores(const AttentionParams& params) {
    using Tile = typename BandSchedule<Tiles::kWalk>::Tile;
    auto& shared = shared_memory<ProductShared<Tiles>>();
    StaticScheduler scheduler(params, ceil_div(params.q_len, Tiles::kOwner), params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        const Rows q = rows(params.q, work, work.head, own.q);
        const Rows k = rows(params.k, work, work.head / (params.q_heads / params.kv_heads), own.k);
        const i32 first_row = work.tile * Tiles::kOwner;
        const Tile tile = {work.chunk * Tiles::kWalk};
        Fragment<Tiles> scores;
        product<Tiles>(scores, shared, q, first_row, k, tile, params.head_dim);
        u8* out = base(params.out, work, work.head);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) {
                const i32 row = first_row + Tiles::local_row(r), column = tile.at(Tiles::local_column(c));
                if (row < own.q.length && column < own.k.length)
                    store(params.out, out + row * params.out.row + column * params.out.column,
                          static_cast<typename Tiles::Acc>(params.scale * scores.at[r][c]));
            }
    }
}
