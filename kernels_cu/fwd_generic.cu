// Forward for any GPU, dtype and head dim: FlashAttention-2's loop (Dao 2023) by plain FMA.
//
// A block owns a tile of queries of one head and a chunk of v's columns; it walks the tiles of keys that the schedule
// yields. Scores live in registers, weights pass through shared memory to be multiplied with values.
#include <schedule/band.cuh>
#include <schedule/list.cuh>
#include <score/features.cuh>
#include <tile/softmax.cuh>
#include <tile/visibility.cuh>

// One query tile: (kOwner, kChunk) of out, and where the chunk is the first, kOwner of lse.
template <class Tiles, class Schedule, class Hooks>
class ForwardTile {
    using Acc = typename Tiles::Acc;
    using Tile = typename Schedule::Tile;

public:
    __device__ ForwardTile(const AttentionParams& params, const Work& work, const Sequence& sequence,
                           TileShared<Tiles, Schedule>& shared)
        : params_(params), work_(work), sequence_(sequence), shared_(shared), hooks_(params, work, work.head, sequence),
          first_row_(work.tile * Tiles::kOwner), first_column_(work.chunk * Tiles::kChunk) {}

    __device__ void run() {
        Schedule schedule(params_.lists, work_, work_.head, params_.q_heads, query_band(params_, sequence_), first_row_,
                          Tiles::kOwner, shared_.schedule);
        for (Tile tile; schedule.next(tile);) {
            if (Hooks::kHides || schedule.partial(tile)) visit<true>(schedule, tile);
            else visit<false>(schedule, tile);
        }
        finish();
    }

private:
    template <bool kMasked>
    __device__ __forceinline__ void visit(const Schedule& schedule, const Tile& tile) {
        const i32 kv_head = work_.head / (params_.q_heads / params_.kv_heads);
        const Rows q = rows(params_.q, work_, work_.head, sequence_.q), k = rows(params_.k, work_, kv_head, sequence_.k);
        const Rows v = rows(params_.v, work_, kv_head, sequence_.k);
        const Place<Tiles, Tile, false> place = {first_row_, tile};
        Fragment<Tiles> scores;
        product<Tiles>(scores, shared_.product, q, first_row_, k, tile, params_.head_dim);
        Bits<Tiles> visible = kMasked ? visible_bits<Tiles>(schedule, tile, place) : equal_bits<Tiles>(true);
        hooks_.hide(visible, place);
        hooks_.scores(scores, visible, place);
        Acc rescale[Tiles::kRows];
        softmax_.template update<kMasked>(scores, visible, rescale);
        multiply_rows(rescale);
        Bits<Tiles> kept = equal_bits<Tiles>(true);
        hooks_.drop(kept, place);
        keep_only(scores, kept);
        share_weights(shared_.product, scores);
        accumulate<kMasked>(out_, shared_.product, v, tile, first_column_, params_.v_dim);
    }

    __device__ __forceinline__ void multiply_rows(const Acc (&factor)[Tiles::kRows]) {
#pragma unroll
        for (int group = 0; group < Tiles::kGroups; ++group)
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
                for (int v = 0; v < Tiles::kVec; ++v) out_.at[group][r][v].multiply(factor[r]);
    }

    // Normalise and store. A row that saw no key gives 0, and the sink or -inf.
    __device__ void finish() {
        const Acc sink = given(params_.sinks) ? load<Acc>(params_.sinks, base(params_.sinks, work_, work_.head)) : -infinity<Acc>();
        const Acc survivors = static_cast<Acc>(hooks_.survivors());
        Acc factor[Tiles::kRows], divisor[Tiles::kRows];
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const i32 row = first_row_ + Tiles::local_row(r);
            const bool saw = softmax_.sum[r].value() != 0 && row < sequence_.q.length;
            const Acc rescale = softmax_.join(r, sink * static_cast<Acc>(kLog2E));
            factor[r] = saw ? rescale * survivors : 0;
            divisor[r] = saw ? softmax_.sum[r].value() : 1;
            if (row < sequence_.q.allotted) store_row(row, r, saw, sink);
        }
        multiply_rows(factor);
        // A division rounds once, a product with the reciprocal twice, and the backward's delta inherits what out loses.
        store_result(out_, params_.out, base(params_.out, work_, work_.head) + sequence_.q.start * params_.out.row,
                     first_row_, sequence_.q.length, sequence_.q.allotted, first_column_, params_.v_dim,
                     [&](int r, Acc value) { return value / divisor[r]; });
    }

    __device__ __forceinline__ void store_row(i32 row, int r, bool saw, Acc sink) {
        if (Tiles::thread_lane() != 0 || work_.chunk != 0) return;
        u8* lse = base(params_.lse, work_, work_.head) + (sequence_.q.start + row) * params_.lse.row;
        store(params_.lse, lse, saw ? softmax_.lse(r) : sink);
        if (!given(params_.stats)) return;
        u8* stats = base(params_.stats, work_, work_.head) + (sequence_.q.start + row) * params_.stats.row;
        store(params_.stats, stats, saw ? softmax_.top[r] : 0);
        store(params_.stats, stats + params_.stats.column, saw ? 1 / softmax_.sum[r].value() : 0);
    }

    const AttentionParams& params_;
    const Work& work_;
    const Sequence sequence_;
    TileShared<Tiles, Schedule>& shared_;
    Hooks hooks_;
    const i32 first_row_, first_column_;
    Softmax<Tiles> softmax_;
    Result<Tiles> out_ = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void fwd_generic(const AttentionParams& params) {
    auto& shared = shared_memory<TileShared<Tiles, Schedule>>();
    typename Schedule::Scheduler scheduler(params, params.lists, Tiles::kOwner, params.q_len, params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        if (work.tile * Tiles::kOwner >= own.q.allotted) continue;
        ForwardTile<Tiles, Schedule, Hooks>(params, work, own, shared).run();
    }
}
