// dbias for any GPU, dtype and head dim: see tile/bias_tile.cuh.
#include <bwd_generic.cu>
#include <tile/bias_tile.cuh>

template <class Tiles, class Schedule, class Hooks>
class BiasGradient {
    using Acc = typename Tiles::Acc;
    using Tile = typename Schedule::Tile;

public:
    __device__ BiasGradient(const AttentionParams& params, const BiasTile& own, TileShared<Tiles, Schedule>& shared)
        : params_(params), own_(own), shared_(shared) {}

    __device__ void run() {
        for_each_sharing(params_, own_, [&](const Work& work, const Sequence& sequence) { add_head(work, sequence); });
        Fragment<Tiles> sums;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) sums.at[r][c] = sums_[r][c].value();
        share_weights(shared_.product, sums);
        block_sync();
        store_bias_tile<Acc, Tiles::kOwner, Tiles::kWalk, Tiles::kThreads>(
            params_, own_, [&](int i, int j) { return shared_.product.weights[i][j]; });
    }

private:
    __device__ void add_head(const Work& work, const Sequence& sequence) {
        Hooks hooks(params_, work, work.head, sequence);
        const i32 kv_head = work.head / (params_.q_heads / params_.kv_heads);
        const GradientOperands operands = query_operands(params_, work, work.head, kv_head, sequence);
        for_each_tile<Tiles::kOwner, Tiles::kWalk>(params_, own_, sequence, [&](i32 row, i32 column, i32 end) {
            Schedule schedule(params_.lists, work, work.head, params_.q_heads, query_band(params_, sequence), row,
                              Tiles::kOwner, shared_.schedule);
            Tile tile;
            for (; column < end; column += Tiles::kWalk)
                if (schedule.fetch(tile, column)) add_tile(work, sequence, hooks, operands, schedule, tile, row);
        });
    }

    __device__ void add_tile(const Work& work, const Sequence& sequence, Hooks& hooks, const GradientOperands& operands,
                             const Schedule& schedule, const Tile& tile, i32 first_row) {
        const Place<Tiles, Tile, false> place = {first_row, tile};
        RowStats<Acc> stats[Tiles::kRows];
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
            stats[r] = load_stats<Acc>(params_, work, work.head, sequence.q, place.owner(r));
        Bits<Tiles> visible = visible_bits<Tiles>(schedule, tile, place);
        Fragment<Tiles> weights, gradients;
        score_gradients<true>(weights, gradients, visible, shared_.product, hooks, place, tile, operands, params_.head_dim,
                              params_.v_dim, [&](int r, int) { return stats[r]; });
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) sums_[r][c].add(gradients.at[r][c]);
    }

    const AttentionParams& params_;
    const BiasTile& own_;
    TileShared<Tiles, Schedule>& shared_;
    CompensatedSum<Acc> sums_[Tiles::kRows][Tiles::kColumns] = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dbias_generic(const AttentionParams& params) {
    auto& shared = shared_memory<TileShared<Tiles, Schedule>>();
    const BiasTile own = bias_tile<Tiles::kOwner, Tiles::kWalk>(params);
    BiasGradient<Tiles, Schedule, Hooks>(params, own, shared).run();
}
