// dbias by tensor cores: see tile/bias_tile.cuh. Two products of a tile, and no result but the scores' gradients.
#include <bwd_sm80.cu>
#include <tile/bias_tile.cuh>

template <class Tiles, class Schedule>
struct alignas(128) MmaBiasShared {
    union {
        MmaQueryShared<Tiles, Schedule> pair;
        float sums[Tiles::kOwner][Tiles::kWalk];
    };
};

template <class Tiles, class Schedule, class Hooks>
class MmaBiasGradient {
    using Tile = typename Schedule::Tile;
    using Scores = ScoreGradients<Tiles, Schedule, Hooks, false>;

public:
    __device__ MmaBiasGradient(const AttentionParams& params, const BiasTile& own, MmaBiasShared<Tiles, Schedule>& shared)
        : params_(params), own_(own), shared_(shared) {}

    __device__ void run() {
        for_each_sharing(params_, own_, [&](const Work& work, const Sequence& sequence) { add_head(work, sequence); });
        block_sync();  // nobody reads operands: sums come in their place
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; c += 2)
                *reinterpret_cast<Pair*>(&sum(Tiles::local_row(r), Tiles::local_column(c))) = {sums_[r][c].value(),
                                                                                              sums_[r][c + 1].value()};
        block_sync();
        store_bias_tile<float, Tiles::kOwner, Tiles::kWalk, Tiles::kThreads>(
            params_, own_, [&](int i, int j) { return sum(i, j); });
    }

private:
    // Four rows of pairs that are written together fall into different banks.
    __device__ __forceinline__ float& sum(int i, int j) { return shared_.sums[i][j ^ i % 4 * 8 % Tiles::kWalk]; }

    __device__ void add_head(const Work& work, const Sequence& sequence) {
        Hooks hooks(params_, work, work.head, sequence);
        for_each_tile<Tiles::kOwner, Tiles::kWalk>(params_, own_, sequence, [&](i32 row, i32 column, i32 end) {
            block_sync();  // nobody uses the schedule of the rows before
            Schedule schedule(params_.lists, work, work.head, params_.q_heads, query_band(params_, sequence), row,
                              Tiles::kOwner, shared_.pair.schedule);
            block_sync();  // its bounds are there
            OwnerTerms<Tiles> terms;
            terms.load(segments(params_, params_.row_terms, work, work.head, sequence.q), row, sequence.q.length);
            Tile tile;
            for (; column < end; column += Tiles::kWalk)
                if (schedule.fetch(tile, column)) add_tile(work, sequence, hooks, terms, schedule, tile, row);
        });
    }

    __device__ void add_tile(const Work& work, const Sequence& sequence, Hooks& hooks, const OwnerTerms<Tiles>& terms,
                             const Schedule& schedule, const Tile& tile, i32 first_row) {
        auto& pair = shared_.pair;
        const i32 kv_head = work.head / (params_.q_heads / params_.kv_heads);
        const OperandPair queries = {rows(params_.q, work, work.head, sequence.q).base,
                               rows(params_.dout, work, work.head, sequence.q).base};
        const OperandPair keys = {rows(params_.k, work, kv_head, sequence.k).base,
                                  rows(params_.v, work, kv_head, sequence.k).base};
        block_sync();  // nobody reads the operands before
        copy_two<Tiles, Tiles::kOwner, true>(pair.q, pair.dout, params_.q, params_.dout, queries, {0, sequence.q.length},
                                             [&](int n) { return first_row + n; }, params_);
        copy_two<Tiles, Tiles::kWalk, Tile::kRun>(pair.k[0], pair.v[0], params_.k, params_.v, keys, schedule.reached(),
                                                  [&](int n) { return tile.at(n); }, params_);
        copy_async_commit();
        copy_async_wait<0>();
        round_two<Tiles, Tiles::kOwner>(pair.q, pair.dout, params_.q, params_.dout, queries, params_);
        round_two<Tiles, Tiles::kWalk>(pair.k[0], pair.v[0], params_.k, params_.v, keys, params_);
        block_sync();
        Scores own(schedule, hooks, tile, first_row, true, {pair.q, pair.dout}, {pair.k[0], pair.v[0]},
                   OwnedTerms<Tiles>{terms, params_, work, first_row});
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) sums_[r][c].add(own.gradients.at[r][c]);
    }

    const AttentionParams& params_;
    const BiasTile& own_;
    MmaBiasShared<Tiles, Schedule>& shared_;
    typename SumsFor<Tiles::kPrecise>::Sum sums_[Tiles::kRows][Tiles::kColumns] = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dbias_sm80(const AttentionParams& params) {
    static_assert(Tiles::kStages == 1 && Tiles::kHeads == 1, "one tile of keys at a time, of queries of one head");
    auto& shared = shared_memory<MmaBiasShared<Tiles, Schedule>>();
    const BiasTile own = bias_tile<Tiles::kOwner, Tiles::kWalk>(params);
    MmaBiasGradient<Tiles, Schedule, Hooks>(params, own, shared).run();
}
