// Forward by tensor cores, for Ampere and newer: FlashAttention-2's loop (Dao 2023) on mma.sync.
//
// A block owns a tile of queries and a chunk of v's columns, each of its warps 16 or more of the rows. The queries are
// one head's, or the same rows of several heads that share keys, values and block lists: Tiles::kHeads. Keys
// and values come by cp.async while the tile before is computed; scores become weights in the registers that the product
// with the values takes them from.
#include <schedule/band.cuh>
#include <schedule/list.cuh>
#include <score/features.cuh>
#include <tile/mma_copy.cuh>
#include <tile/mma_softmax.cuh>
#include <tile/mma_split.cuh>
#include <tile/mma_store.cuh>
#include <tile/mma_visibility.cuh>

// One query tile: (kOwner, kVDim) of out, and where the chunk is the first, kOwner of lse.
template <class Tiles, class Schedule, class Hooks>
class MmaForwardTile {
    using Tile = typename Schedule::Tile;
    // Whether a key that is copied may be hidden from all rows of a warp, and with it values that are NaN.
    static constexpr bool kMayHideKeys = Hooks::kHides || Schedule::kPatterns;

public:
    __device__ MmaForwardTile(const AttentionParams& params, const Work& work, const Sequence& sequence,
                              MmaShared<Tiles, Schedule>& shared)
        : params_(params), shared_(shared), hooks_(params, work, Tiles::head(work), sequence),
          schedule_(params.lists, work, work.head, params.q_heads, query_band(params, sequence),
                    Tiles::first_tile_row(work), Tiles::kHeadRows, shared.schedule),
          first_row_(Tiles::first_row(work)), first_column_(work.chunk * Tiles::kVDim) {
        if (thread_index() != 0) return;
        const i32 kv_head = work.head / (params.q_heads / params.kv_heads);
        shared.work = work;
        shared.k_base = rows(params.k, work, kv_head, sequence.k).base;
        shared.v_base = rows(params.v, work, kv_head, sequence.k).base;
    }

    __device__ void run(const Rows& q) {
        block_sync();  // the work and the schedule's bounds are there
        more_ = schedule_.ahead(tile_);
        if constexpr (Tiles::kStages == 2) another_ = more_ && schedule_.ahead(following_);
        block_sync();  // the tile's segments are there
        if (more_) copy_first(q);
        for (int stage = 0; more_; stage ^= Tiles::kStages - 1) {
            if constexpr (Tiles::kStages == 1) visit_alone();
            else visit_ahead(stage);
            tile_ = following_;
            more_ = another_;
            if constexpr (Tiles::kStages == 2) another_ = further_, following_ = after_;
        }
        finish(shared_.work);
    }

private:
    __device__ __forceinline__ void copy_first(const Rows& q) {
        copy_queries<Tiles>(shared_.q, q, first_row_ + Tiles::warp_head() * Tiles::kHeadRows, params_.head_dim);
        copy_k(shared_.k[0], tile_);
        if constexpr (Tiles::kStages == 2) copy_v(shared_.v[0], tile_);
        copy_async_commit();
        prepare_queries<Tiles>(shared_.q, params_.scale < 0);
    }

    __device__ __forceinline__ void copy_k(u8* to, const Tile& tile) {
        copy_keys<Tiles>(to, params_.k, shared_.k_base, schedule_.reached(), tile, params_.head_dim);
    }

    __device__ __forceinline__ void copy_v(u8* to, const Tile& tile) {
        copy_values<Tiles>(to, params_.v, shared_.v_base, schedule_.reached(), tile, first_column_, params_.v_dim);
    }

    // One tile of keys and one of values in shared memory: values come during q k^T, the next keys during the rest.
    __device__ __forceinline__ void visit_alone() {
        Fragment<Tiles> scores;
        const TileBits bits = tile_bits();
        copy_async_wait<0>();
        round_keys<Tiles>(shared_.k[0], params_.k, shared_.k_base, params_.head_dim);
        block_sync();  // keys are there, and nobody reads the values of the tile before
        copy_v(shared_.v[0], tile_);
        copy_async_commit();
        multiply_keys(scores, shared_.k[0]);
        another_ = schedule_.ahead(following_);
        copy_async_wait<0>();
        round_values<Tiles>(shared_.v[0], params_.v, shared_.v_base, params_.v_dim);
        block_sync();  // values are there, nobody reads these keys, and the next tile's segments are there
        if (another_) copy_k(shared_.k[0], following_);
        copy_async_commit();
        visit(scores, bits, shared_.v[0]);
    }

    // Two of each: the next ones come during all of this tile.
    __device__ __forceinline__ void visit_ahead(int stage) {
        Fragment<Tiles> scores;
        copy_async_wait<0>();
        round_keys<Tiles>(shared_.k[stage], params_.k, shared_.k_base, params_.head_dim);
        round_values<Tiles>(shared_.v[stage], params_.v, shared_.v_base, params_.v_dim);
        block_sync();  // this tile is there, and so are the next one's segments; nobody reads the one before
        if (another_) {
            copy_k(shared_.k[stage ^ 1], following_);
            copy_v(shared_.v[stage ^ 1], following_);
        }
        copy_async_commit();
        further_ = another_ && schedule_.ahead(after_);
        const TileBits bits = tile_bits();
        multiply_keys(scores, shared_.k[stage]);
        visit(scores, bits, shared_.v[stage]);
    }

    __device__ __forceinline__ void multiply_keys(Fragment<Tiles>& scores, const u8* k) {
        warp_sync();  // lanes that took branches of their own, to copy or to look at bits, are together again
        tile_product<false, Tiles::kHeadBytes, Tiles::kHeadPitch>(scores, shared_.q, k);
    }

    // What follows from coordinates alone, before the product: registers are free, and loads have time.
    struct TileBits {
        Bits<Tiles> visible, kept;
    };

    __device__ __forceinline__ TileBits tile_bits() const {
        const Place<Tiles, Tile, false> place = {first_row_, tile_};
        TileBits bits = {equal_bits<Tiles>(true), equal_bits<Tiles>(true)};
        if constexpr (Hooks::kHides) {
            bits.visible = visible_patches<Tiles>(schedule_, tile_, place);
            hooks_.hide(bits.visible, place);
        }
        hooks_.drop(bits.kept, place);
        return bits;
    }

    __device__ __forceinline__ void visit(Fragment<Tiles>& scores, const TileBits& bits, const u8* v) {
        const Place<Tiles, Tile, false> place = {first_row_, tile_};
        Bits<Tiles> visible = bits.visible;
        if (!Hooks::kHides && schedule_.partial(tile_)) visible = visible_patches<Tiles>(schedule_, tile_, place);
        const float factor = hooks_.scores(scores, visible, place);
        if (Hooks::kHides || schedule_.partial(tile_)) hide(scores, visible);
        Seen seen = {0xffffffffu};
        if constexpr (kMayHideKeys) seen = seen_by_warp(visible);
        softmax_.update(scores, factor, out_);
        keep_only(scores, bits.kept);
        add_product<kMayHideKeys, Tiles::kVPitch>(out_, scores, v, seen);
    }

    // Normalise and store. A row that saw no key gives 0, and the sink or -inf.
    __device__ void finish(const Work& work) {
        const Extent queries = sequence(params_, work).q;
        const i32 head = Tiles::head(work);
        const float sink = given(params_.sinks) ? load<float>(params_.sinks, base(params_.sinks, work, head)) : -infinity<float>();
        const float survivors = static_cast<float>(hooks_.survivors());
        softmax_.gather();
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const i32 row = first_row_ + Tiles::local_row(r);
            const bool saw = softmax_.sum[r].value() != 0 && row < queries.length;
            const float factor = softmax_.join(r, sink * static_cast<float>(kLog2E)) * survivors;
            normalise(out_.at[r], saw, factor, softmax_.sum[r].value());
            if (row < queries.allotted) store_row(work, head, queries.start + row, r, saw, sink);
        }
        store_out(work, head, queries);
    }

    // A row that saw nothing may hold NaN: hidden values times 0.
    template <class Row>
    __device__ __forceinline__ static void normalise(Row& row, bool saw, float factor, float divisor) {
        const float reciprocal = 1 / divisor;
#pragma unroll
        for (auto& own : row) {
            own = {saw ? divided(own.low_value() * factor, divisor, reciprocal) : 0,
                   saw ? divided(own.high_value() * factor, divisor, reciprocal) : 0};
        }
    }

    // A step of Newton's rounds as a division does, where a product with the reciprocal rounds twice: the backward's delta
    // inherits what out loses.
    __device__ __forceinline__ static float divided(float value, float divisor, float reciprocal) {
        const float quotient = value * reciprocal;
        if constexpr (!Tiles::kPrecise) return quotient;
        const float rest = multiply_add(-quotient, divisor, value);
        return rest == rest ? multiply_add(rest, reciprocal, quotient) : quotient;
    }

    __device__ __forceinline__ void store_out(const Work& work, i32 head, const Extent& queries) {
        const Target target = {params_.out, base(params_.out, work, head) + queries.start * params_.out.row,
                               first_row_ + Tiles::first_warp_row(), queries.allotted, first_column_, params_.v_dim};
        u8* stage = shared_.q + Tiles::first_warp_row() * Tiles::kHeadPitch;  // which only this warp reads
        store_any<Tiles::kHeadPitch>(out_, stage, target);
    }

    __device__ __forceinline__ void store_row(const Work& work, i32 head, i64 row, int r, bool saw, float sink) {
        if (Tiles::thread_lane() != 0 || work.chunk != 0) return;
        u8* lse = base(params_.lse, work, head) + row * params_.lse.row;
        write(lse, saw ? softmax_.lse(r) : sink, params_.lse.unaligned);
        if (!given(params_.stats)) return;
        u8* stats = base(params_.stats, work, head) + row * params_.stats.row;
        *reinterpret_cast<float*>(stats) = saw ? softmax_.reference[r] : 0;
        *reinterpret_cast<float*>(stats + params_.stats.column) = saw ? 1 / softmax_.sum[r].value() : 0;
    }

    const AttentionParams& params_;
    MmaShared<Tiles, Schedule>& shared_;
    Hooks hooks_;
    Schedule schedule_;
    const i32 first_row_;  // Tiles::first_row
    const i32 first_column_;
    Tile tile_, following_, after_;  // this one, and those ahead
    bool more_, another_, further_;  // whether they are there
    MmaSoftmax<Tiles> softmax_;
    MmaResult<Tiles> out_ = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void fwd_sm80(const AttentionParams& params) {
    auto& shared = shared_memory<MmaShared<Tiles, Schedule>>();
    typename Schedule::Scheduler scheduler(params, params.lists, Tiles::kHeadRows, params.q_len,
                                           params.q_heads / Tiles::kHeads);
    for (Work work; scheduler.next(work);) {
        work.head *= Tiles::kHeads;  // the first of the tile
        const Sequence own = sequence(params, work);
        if (Tiles::first_tile_row(work) >= own.q.allotted) continue;
        block_sync();  // nobody uses shared memory any more
        MmaForwardTile<Tiles, Schedule, Hooks>(params, work, own, shared).run(rows(params.q, work, work.head, own.q));
    }
}
