// Backward for any GPU, dtype and head dim (Dao et al. 2022, algorithm 4), deterministic: dq by blocks that own queries,
// dk and dv by blocks that own keys. Both recompute P; nothing is added by two blocks.
#include <ptx/shuffle.cuh>
#include <schedule/band.cuh>
#include <schedule/list.cuh>
#include <score/features.cuh>
#include <tile/gradient.cuh>

// ---- dq ----

// One query tile: (kOwner, kChunk) of dq, and each row's share of dsinks.
template <class Tiles, class Schedule, class Hooks>
class QueryGradient {
    using Acc = typename Tiles::Acc;
    using Tile = typename Schedule::Tile;

public:
    __device__ QueryGradient(const AttentionParams& params, const Work& work, const Sequence& sequence,
                             TileShared<Tiles, Schedule>& shared)
        : params_(params), work_(work), sequence_(sequence), shared_(shared), hooks_(params, work, work.head, sequence),
          operands_(query_operands(params, work, work.head, work.head / (params.q_heads / params.kv_heads), sequence)),
          first_row_(work.tile * Tiles::kOwner), first_column_(work.chunk * Tiles::kChunk) {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
            stats_[r] = load_stats<Acc>(params, work, work.head, sequence.q, owner(r));
    }

    __device__ void run() {
        Schedule schedule(params_.lists, work_, work_.head, params_.q_heads, query_band(params_, sequence_), first_row_,
                          Tiles::kOwner, shared_.schedule);
        for (Tile tile; schedule.next(tile);) {
            if (Hooks::kHides || schedule.partial(tile)) visit<true>(schedule, tile);
            else visit<false>(schedule, tile);
        }
        if (given(params_.dq))
            store_result(dq_, params_.dq, base(params_.dq, work_, work_.head) + sequence_.q.start * params_.dq.row,
                         first_row_, sequence_.q.length, sequence_.q.allotted, first_column_, params_.head_dim);
        if (given(params_.sink_rows)) store_sinks();
    }

private:
    __device__ i32 owner(int r) const { return first_row_ + Tiles::local_row(r); }

    template <bool kMasked>
    __device__ __forceinline__ void visit(const Schedule& schedule, const Tile& tile) {
        const Place<Tiles, Tile, false> place = {first_row_, tile};
        Bits<Tiles> visible = kMasked ? visible_bits<Tiles>(schedule, tile, place) : equal_bits<Tiles>(true);
        Fragment<Tiles> weights, gradients;
        score_gradients<kMasked>(weights, gradients, visible, shared_.product, hooks_, place, tile, operands_,
                                 params_.head_dim, params_.v_dim, [&](int r, int) { return stats_[r]; });
        seen_.add(visible);
        if (!given(params_.dq)) return;
        hooks_.gradient(gradients);
        share_weights(shared_.product, gradients);
        accumulate<kMasked>(dq_, shared_.product, operands_.walked_a, tile, first_column_, params_.head_dim);
    }

    // d sink = -P(sink) * delta, for rows that saw a key.
    __device__ void store_sinks() {
        const Acc sink = load<Acc>(params_.sinks, base(params_.sinks, work_, work_.head)) * static_cast<Acc>(kLog2E);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            u32 seen = 0;
            for (int c = 0; c < Tiles::kColumns; ++c) seen |= seen_(r, c);
            for (u32 mask = Tiles::kLanes / 2; mask > 0; mask /= 2) seen |= shuffle_xor(seen, mask);
            if (Tiles::thread_lane() != 0 || work_.chunk != 0 || owner(r) >= sequence_.q.length) continue;
            u8* to = base(params_.sink_rows, work_, work_.head) + static_cast<i64>(sequence_.q.start + owner(r)) * params_.sink_rows.row;
            const Acc weight = power_of_two(sink - stats_[r].reference) * stats_[r].inverse_sum;
            store(params_.sink_rows, to, seen ? -weight * stats_[r].delta : 0);
        }
    }

    const AttentionParams& params_;
    const Work& work_;
    const Sequence sequence_;
    TileShared<Tiles, Schedule>& shared_;
    Hooks hooks_;
    const GradientOperands operands_;
    const i32 first_row_, first_column_;
    RowStats<Acc> stats_[Tiles::kRows];
    Bits<Tiles> seen_ = equal_bits<Tiles>(false);
    Result<Tiles> dq_ = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dq_generic(const AttentionParams& params) {
    auto& shared = shared_memory<TileShared<Tiles, Schedule>>();
    typename Schedule::Scheduler scheduler(params, params.lists, Tiles::kOwner, params.q_len, params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        if (work.tile * Tiles::kOwner >= own.q.allotted) continue;
        QueryGradient<Tiles, Schedule, Hooks>(params, work, own, shared).run();
    }
}

// ---- dk, dv ----

template <class Tiles, class Schedule>
struct KeyShared {
    ProductShared<Tiles> product;
    RowStats<typename Tiles::Acc> stats[Tiles::kWalk];  // of the walked queries
    typename Schedule::Shared schedule;
};

// One key tile: (kOwner, kChunk) of dk and of dv, summed over the query heads that share the key head.
template <class Tiles, class Schedule, class Hooks>
class KeyGradient {
    using Acc = typename Tiles::Acc;
    using Tile = typename Schedule::Tile;

public:
    __device__ KeyGradient(const AttentionParams& params, const Work& work, const Sequence& sequence,
                           KeyShared<Tiles, Schedule>& shared)
        : params_(params), work_(work), sequence_(sequence), shared_(shared),
          first_row_(work.tile * Tiles::kOwner), first_column_(work.chunk * Tiles::kChunk) {}

    __device__ void run() {
        const i32 group = params_.q_heads / params_.kv_heads;
        for (i32 head = work_.head * group; head < (work_.head + 1) * group; ++head) add_head(head);
        if (given(params_.dk)) store(dk_, params_.dk, params_.head_dim);
        if (given(params_.dv)) store(dv_, params_.dv, params_.v_dim);
    }

private:
    __device__ void add_head(i32 head) {
        Hooks hooks(params_, work_, head, sequence_);
        const GradientOperands operands = key_operands(params_, work_, head, work_.head, sequence_);
        Schedule schedule(params_.transposed_lists, work_, head, params_.q_heads, key_band(params_, sequence_), first_row_,
                          Tiles::kOwner, shared_.schedule);
        for (Tile tile; schedule.next(tile);) {
            if (Hooks::kHides || schedule.partial(tile)) visit<true>(hooks, operands, schedule, tile, head);
            else visit<false>(hooks, operands, schedule, tile, head);
        }
    }

    template <bool kMasked>
    __device__ __forceinline__ void visit(
        Hooks& hooks, const GradientOperands& operands, const Schedule& schedule, const Tile& tile, i32 head) {
        const Place<Tiles, Tile, true> place = {first_row_, tile};
        // The products' barriers stand between these writes and their reads, the one below between reads and rewrites.
        for (int n = thread_index(); n < Tiles::kWalk; n += Tiles::kThreads)
            shared_.stats[n] = load_stats<Acc>(params_, work_, head, sequence_.q, tile.at(n));
        Bits<Tiles> visible = kMasked ? visible_bits<Tiles>(schedule, tile, place) : equal_bits<Tiles>(true);
        Fragment<Tiles> weights, gradients;
        score_gradients<kMasked>(weights, gradients, visible, shared_.product, hooks, place, tile, operands,
                                 params_.head_dim, params_.v_dim,
                                 [&](int, int c) { return shared_.stats[place.local_column(c)]; });
        if (given(params_.dv)) {
            multiply(weights, static_cast<Acc>(hooks.survivors()));
            share_weights(shared_.product, weights);
            accumulate<kMasked>(dv_, shared_.product, operands.walked_b, tile, first_column_, params_.v_dim);
        }
        block_sync();  // weights are still being read
        if (!given(params_.dk)) return;
        hooks.gradient(gradients);
        share_weights(shared_.product, gradients);
        accumulate<kMasked>(dk_, shared_.product, operands.walked_a, tile, first_column_, params_.head_dim);
    }

    __device__ __forceinline__ static void multiply(Fragment<Tiles>& fragment, Acc factor) {
        for (auto& row : fragment.at)
            for (auto& weight : row) weight *= factor;
    }

    __device__ void store(const Result<Tiles>& result, const Operand& operand, i32 columns) {
        store_result(result, operand, base(operand, work_, work_.head) + sequence_.k.start * operand.row, first_row_,
                     sequence_.k.length, sequence_.k.allotted, first_column_, columns);
    }

    const AttentionParams& params_;
    const Work& work_;
    const Sequence sequence_;
    KeyShared<Tiles, Schedule>& shared_;
    const i32 first_row_, first_column_;
    Result<Tiles> dk_ = {}, dv_ = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dkv_generic(const AttentionParams& params) {
    auto& shared = shared_memory<KeyShared<Tiles, Schedule>>();
    typename Schedule::Scheduler scheduler(params, params.transposed_lists, Tiles::kOwner, params.kv_len, params.kv_heads,
                                           Order::kFirstFirst);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        if (work.tile * Tiles::kOwner >= own.k.allotted) continue;
        KeyGradient<Tiles, Schedule, Hooks>(params, work, own, shared).run();
    }
}
