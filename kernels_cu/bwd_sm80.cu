// Backward by tensor cores, for Ampere and newer (Dao 2023): P from the forward's statistics, five products.
//
// Keys own a tile, each warp 16 or more of them, and queries walk. Products are computed transposed, so that P and dS are
// in the registers that dv and dk take them from. dq of a tile is the one product that needs all keys of the block: dS
// goes through shared memory, and the sums of all blocks are added in global memory. Where that is not wanted, queries
// own the tiles of a second kernel.
#include <schedule/list.cuh>
#include <score/features.cuh>
#include <tile/mma_reduce.cuh>
#include <tile/mma_store.cuh>
#include <tile/mma_walk.cuh>

template <class Tiles, int kCount, bool kRun, class At>
__device__ __forceinline__ void copy_two(u8* to_a, u8* to_b, const Operand& a, const Operand& b, const OperandPair& bases,
                                         const Span& there, const At& at, const AttentionParams& params) {
    copy_rows<Tiles, kCount, Tiles::kHeadBytes, Tiles::kHeadPitch, Tiles::Kind::kRounds, kRun>(
        to_a, a, bases.a, there, at, 0, params.head_dim);
    copy_rows<Tiles, kCount, Tiles::kVBytes, Tiles::kVPitch, Tiles::Kind::kRounds, kRun>(
        to_b, b, bases.b, there, at, 0, params.v_dim);
}

// What the thread copied, once it has arrived.
template <class Tiles, int kCount>
__device__ __forceinline__ void round_two(
    u8* a_rows, u8* b_rows, const Operand& a, const Operand& b, const OperandPair& bases, const AttentionParams& params) {
    if constexpr (Tiles::Kind::kRounds) {
        round_rows<Tiles, kCount, Tiles::kHeadBytes, Tiles::kHeadPitch>(a_rows, a, bases.a, params.head_dim);
        round_rows<Tiles, kCount, Tiles::kVBytes, Tiles::kVPitch>(b_rows, b, bases.b, params.v_dim);
    }
}

// A tile of a gradient to where it belongs. The stage is shared memory of kHeadPitch bytes for each owner row.
template <class Tiles, int kWidth>
__device__ __forceinline__ void store_gradient(const MmaResult<Tiles, kWidth>& result, const Operand& to, const Work& work,
                                               const Extent& extent, i32 columns, u8* stage) {
    const Target target = {to, base(to, work, Tiles::head(work)) + extent.start * to.row,
                           Tiles::first_row(work) + Tiles::first_warp_row(), extent.allotted, work.chunk * kWidth, columns};
    store_any<Tiles::kHeadPitch>(result, stage + Tiles::first_warp_row() * Tiles::kHeadPitch, target);
}

// ---- dk, dv, and with kAddsQ dq ----

template <class Tiles, bool kAddsQ>
struct GradientsForQ : SharedGradients<Tiles> {};
template <class Tiles>
struct GradientsForQ<Tiles, false> {
    u64 unused[2];
};

template <class Tiles, class Schedule, bool kAddsQ>
struct alignas(128) MmaKeyShared {
    u8 k[Tiles::kOwner * Tiles::kHeadPitch];
    u8 v[Tiles::kOwner * Tiles::kVPitch];
    u8 q[Tiles::kStages][Tiles::kWalk * Tiles::kHeadPitch];
    u8 dout[Tiles::kStages][Tiles::kWalk * Tiles::kVPitch];
    SegmentOf<Tiles> terms[Tiles::kStages][Tiles::kWalk / kSegment];
    GradientsForQ<Tiles, kAddsQ> gradients;
    // Of the head whose queries walk, and what the loop over tiles has no registers for.
    Work work;
    OperandPair walked;
    Segments terms_from, parts;
    bool masked;  // whether visibility matters even in FULL tiles
    typename Schedule::Shared schedule;
};

// One key tile: (kOwner, kHeadChunk) of dk and (kOwner, kVChunk) of dv, summed over the query heads that share the key head.
template <class Tiles, class Schedule, class Hooks, bool kAddsQ>
class MmaKeyGradient {
    using Tile = typename Schedule::Tile;
    using Scores = ScoreGradients<Tiles, Schedule, Hooks, true>;
    using Shared = MmaKeyShared<Tiles, Schedule, kAddsQ>;

    static_assert(Tiles::kHeads == 1, "heads of keys have no schedule in common");

public:
    __device__ MmaKeyGradient(const AttentionParams& params, const Work& work, const Sequence& sequence, Shared& shared)
        : params_(params), shared_(shared) {
        if (thread_index() == 0) {
            shared.work = work;
            // Rows of zeros have weights of any size, which dq must not get.
            shared.masked = kAddsQ && first_row(work) + Tiles::kOwner > sequence.k.length;
        }
        copy_keys(work, sequence);
    }

    __device__ void run() {
        const i32 group = params_.q_heads / params_.kv_heads;
        block_sync();  // the work is there
        for (i32 head = shared_.work.head * group; head < (shared_.work.head + 1) * group; ++head) add_head(head);
        copy_async_wait<0>();  // of keys that no query walked by
        block_sync();          // nobody reads them: stages of the results come in their place
        const Work& work = shared_.work;
        const Extent keys = sequence(params_, work).k;
        if (given(params_.dk)) {
            finish(dk_, static_cast<float>(params_.scale), first_row(work), keys.length);
            store_gradient(dk_, params_.dk, work, keys, params_.head_dim, shared_.k);
        }
        if (given(params_.dv)) {
            finish(dv_, survivors_, first_row(work), keys.length);
            store_gradient(dv_, params_.dv, work, keys, params_.v_dim, shared_.k);
        }
    }

private:
    // Keys that no query sees are zeros, whatever they hold.
    __device__ __forceinline__ void copy_keys(const Work& work, const Sequence& sequence) {
        const OperandPair bases = {rows(params_.k, work, work.head, sequence.k).base,
                             rows(params_.v, work, work.head, sequence.k).base};
        copy_two<Tiles, Tiles::kOwner, true>(shared_.k, shared_.v, params_.k, params_.v, bases,
                                             key_band(params_, sequence).owners(),
                                             [&](int n) { return first_row(work) + n; }, params_);
        copy_async_commit();
        if constexpr (Tiles::Kind::kRounds) {
            copy_async_wait<0>();
            round_two<Tiles, Tiles::kOwner>(shared_.k, shared_.v, params_.k, params_.v, bases, params_);
        }
    }

    __device__ __forceinline__ static i32 first_row(const Work& work) { return work.tile * Tiles::kOwner; }

    // What it starts from is found anew for each head, and read where it is used: the loop over tiles has no registers.
    __device__ __forceinline__ void add_head(i32 head) {
        block_sync();  // nobody uses what the head before left in shared memory
        const Work& work = shared_.work;
        const Sequence own = sequence(params_, work);
        if (thread_index() == 0) {
            shared_.walked = {rows(params_.q, work, head, own.q).base, rows(params_.dout, work, head, own.q).base};
            shared_.terms_from = segments(params_, params_.row_terms, work, head, own.q);
            if (kAddsQ) shared_.parts = segments(params_, params_.dq_parts, work, head, own.q);
        }
        Hooks hooks(params_, work, head, own);
        survivors_ = static_cast<float>(hooks.survivors());
        Schedule schedule(params_.transposed_lists, work, head, params_.q_heads, key_band(params_, own),
                          first_row(work), Tiles::kOwner, shared_.schedule);
        const auto copy = [&](int stage, const Tile& tile) { copy_queries(schedule, stage, tile); };
        const auto settle = [&](int stage) {
            round_two<Tiles, Tiles::kWalk>(
                shared_.q[stage], shared_.dout[stage], params_.q, params_.dout, shared_.walked, params_);
        };
        TileWalk<Tiles::kStages, kAddsQ, Schedule> walk(schedule);
        walk.run(copy, settle, [&](int stage, const Tile& tile) {
            visit(schedule, hooks, stage, tile, [&] { walk.leave(copy); });
        });
    }

    __device__ __forceinline__ void copy_queries(const Schedule& schedule, int stage, const Tile& tile) {
        copy_two<Tiles, Tiles::kWalk, Tile::kRun>(shared_.q[stage], shared_.dout[stage], params_.q, params_.dout,
                                                  shared_.walked, schedule.reached(), [&](int n) { return tile.at(n); },
                                                  params_);
        copy_terms<Tiles>(shared_.terms[stage], shared_.terms_from, tile, schedule.reached().end);
    }

    template <class Leave>
    __device__ __forceinline__ void visit(
        const Schedule& schedule, Hooks& hooks, int stage, const Tile& tile, const Leave& leave) {
        const Work& work = shared_.work;
        Scores own(schedule, hooks, tile, first_row(work), shared_.masked, {shared_.k, shared_.v},
                   {shared_.q[stage], shared_.dout[stage]}, WalkedTerms<Tiles>{shared_.terms[stage]});
        hooks.gradient(own.gradients);
        if constexpr (kAddsQ) {
            shared_.gradients.template put<Scores::kMayHide>(own.gradients, own.rows);
            warp_sync();  // only some lanes note which rows are seen
        }
        if (given(params_.dv))
            add_product<Scores::kMayHide, Tiles::kVPitch>(
                dv_, own.weights, shared_.dout[stage], own.seen, Tiles::v_byte(work.chunk));
        if (given(params_.dk))
            add_product<Scores::kMayHide, Tiles::kHeadPitch>(
                dk_, own.gradients, shared_.q[stage], own.seen, Tiles::head_byte(work.chunk));
        leave();
        if constexpr (kAddsQ)
            add_queries<Scores::kMayHide>(
                shared_.parts, shared_.gradients, shared_.k, tile, schedule.reached().end, Tiles::head_byte(work.chunk));
    }

    const AttentionParams& params_;
    Shared& shared_;
    float survivors_ = 1;
    MmaResult<Tiles, Tiles::kHeadChunk> dk_ = {};
    MmaResult<Tiles, Tiles::kVChunk> dv_ = {};
};

template <class Tiles, class Schedule, class Hooks, bool kAddsQ>
__device__ __forceinline__ void bwd_dkv_sm80(const AttentionParams& params) {
    auto& shared = shared_memory<MmaKeyShared<Tiles, Schedule, kAddsQ>>();
    typename Schedule::Scheduler scheduler(params, params.transposed_lists, Tiles::kOwner, params.kv_len, params.kv_heads,
                                           Order::kFirstFirst);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        if (work.tile * Tiles::kOwner >= own.k.allotted) continue;
        block_sync();  // nobody uses shared memory any more
        MmaKeyGradient<Tiles, Schedule, Hooks, kAddsQ>(params, work, own, shared).run();
    }
}

// ---- dq ----

template <class Tiles, class Schedule>
struct alignas(128) MmaQueryShared {
    u8 q[Tiles::kOwner * Tiles::kHeadPitch];
    u8 dout[Tiles::kOwner * Tiles::kVPitch];
    u8 k[Tiles::kStages][Tiles::kWalk * Tiles::kHeadPitch];
    u8 v[Tiles::kStages][Tiles::kWalk * Tiles::kVPitch];
    Work work;
    OperandPair walked;
    typename Schedule::Shared schedule;
};

// One query tile, of Tiles::kHeads heads: (kOwner, kHeadChunk) of dq, and each row's share of dsinks.
template <class Tiles, class Schedule, class Hooks>
class MmaQueryGradient {
    using Tile = typename Schedule::Tile;
    using Scores = ScoreGradients<Tiles, Schedule, Hooks, false>;
    using Shared = MmaQueryShared<Tiles, Schedule>;

public:
    __device__ MmaQueryGradient(const AttentionParams& params, const Work& work, const Sequence& sequence, Shared& shared)
        : params_(params), shared_(shared), hooks_(params, work, Tiles::head(work), sequence),
          schedule_(params.lists, work, work.head, params.q_heads, query_band(params, sequence),
                    Tiles::first_tile_row(work), Tiles::kHeadRows, shared.schedule) {
        terms_.load(segments(params, params.row_terms, work, Tiles::head(work), sequence.q), Tiles::first_row(work),
                    sequence.q.length);
        copy_queries(work, sequence);
        if (thread_index() != 0) return;
        const i32 kv_head = work.head / (params.q_heads / params.kv_heads);
        shared.work = work;
        shared.walked = {rows(params.k, work, kv_head, sequence.k).base, rows(params.v, work, kv_head, sequence.k).base};
    }

    __device__ void run() {
        const auto copy = [&](int stage, const Tile& tile) {
            copy_two<Tiles, Tiles::kWalk, Tile::kRun>(shared_.k[stage], shared_.v[stage], params_.k, params_.v,
                                                      shared_.walked, schedule_.reached(),
                                                      [&](int n) { return tile.at(n); }, params_);
        };
        const auto settle = [&](int stage) {
            round_two<Tiles, Tiles::kWalk>(
                shared_.k[stage], shared_.v[stage], params_.k, params_.v, shared_.walked, params_);
        };
        TileWalk<Tiles::kStages, false, Schedule> walk(schedule_);
        walk.run(copy, settle, [&](int stage, const Tile& tile) { visit(stage, tile, [&] { walk.leave(copy); }); });
        copy_async_wait<0>();  // of queries that no key walked by
        block_sync();          // nobody reads them: stages of the result come in their place
        const Work& own = shared_.work;
        const Extent queries = ::sequence(params_, own).q;
        if (given(params_.sink_rows)) store_sinks(own, queries);
        if (!given(params_.dq)) return;
        finish(dq_, static_cast<float>(params_.scale), Tiles::first_row(own), queries.length);
        store_gradient(dq_, params_.dq, own, queries, params_.head_dim, shared_.q);
    }

private:
    __device__ __forceinline__ void copy_queries(const Work& work, const Sequence& sequence) {
        for_each_head(work, sequence, [&](u8* q, u8* dout, const OperandPair& bases) {
            copy_two<Tiles, Tiles::kHeadRows, true>(q, dout, params_.q, params_.dout, bases, {0, sequence.q.length},
                                                    [&](int n) { return Tiles::first_tile_row(work) + n; }, params_);
        });
        copy_async_commit();
        if constexpr (Tiles::Kind::kRounds) {
            copy_async_wait<0>();
            for_each_head(work, sequence, [&](u8* q, u8* dout, const OperandPair& bases) {
                round_two<Tiles, Tiles::kHeadRows>(q, dout, params_.q, params_.dout, bases, params_);
            });
        }
    }

    // Calls visit(the tile's rows of q, those of dout, where they come from) for each of the tile's heads.
    template <class Visit>
    __device__ __forceinline__ void for_each_head(const Work& work, const Sequence& sequence, const Visit& visit) {
        OperandPair bases = {rows(params_.q, work, work.head, sequence.q).base,
                             rows(params_.dout, work, work.head, sequence.q).base};
#pragma unroll 1
        for (int head = 0; head < Tiles::kHeads; ++head) {
            const int row = head * Tiles::kHeadRows;
            visit(shared_.q + row * Tiles::kHeadPitch, shared_.dout + row * Tiles::kVPitch, bases);
            bases = {bases.a + params_.q.head, bases.b + params_.dout.head};
        }
    }

    template <class Leave>
    __device__ __forceinline__ void visit(int stage, const Tile& tile, const Leave& leave) {
        const Work& work = shared_.work;
        Scores own(schedule_, hooks_, tile, Tiles::first_row(work), false, {shared_.q, shared_.dout},
                   {shared_.k[stage], shared_.v[stage]},
                   OwnedTerms<Tiles>{terms_, params_, work, Tiles::first_row(work)});
        seen_ |= own.rows;
        if (given(params_.dq)) {
            hooks_.gradient(own.gradients);
            add_product<Scores::kMayHide, Tiles::kHeadPitch>(
                dq_, own.gradients, shared_.k[stage], own.seen, Tiles::head_byte(work.chunk));
        }
        leave();
    }

    // d sink = -P(sink) * delta, for rows that saw a key.
    __device__ void store_sinks(const Work& work, const Extent& queries) {
        const i32 head = Tiles::head(work);
        const float sink = load<float>(params_.sinks, base(params_.sinks, work, head));
        for (u32 mask = Tiles::kLanes / 2; mask > 0; mask /= 2) seen_ |= shuffle_xor(seen_, mask);
        if (Tiles::thread_lane() != 0 || work.chunk != 0) return;
        u8* to = base(params_.sink_rows, work, head) + queries.start * params_.sink_rows.row;
        const auto factors = OwnedTerms<Tiles>{terms_, params_, work, Tiles::first_row(work)}.factors();
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const i32 row = Tiles::first_row(work) + Tiles::local_row(r);
            if (row >= queries.length) continue;
            const float weight = terms_.own[r].weight(sink, static_cast<float>(kLog2E)) * factors.factor(r, 0);
            const float share = -weight * terms_.own[r].delta;
            store(params_.sink_rows, to + row * params_.sink_rows.row, seen_ >> r & 1u ? share : 0);
        }
    }

    const AttentionParams& params_;
    Shared& shared_;
    Hooks hooks_;
    Schedule schedule_;
    OwnerTerms<Tiles> terms_;
    u32 seen_ = 0;  // a bit for each row that saw a key
    MmaResult<Tiles, Tiles::kHeadChunk> dq_ = {};
};

template <class Tiles, class Schedule, class Hooks>
__device__ __forceinline__ void bwd_dq_sm80(const AttentionParams& params) {
    auto& shared = shared_memory<MmaQueryShared<Tiles, Schedule>>();
    typename Schedule::Scheduler scheduler(params, params.lists, Tiles::kHeadRows, params.q_len,
                                           params.q_heads / Tiles::kHeads);
    for (Work work; scheduler.next(work);) {
        work.head *= Tiles::kHeads;  // the first of the tile
        const Sequence own = sequence(params, work);
        if (Tiles::first_tile_row(work) >= own.q.allotted) continue;
        block_sync();  // nobody uses shared memory any more
        MmaQueryGradient<Tiles, Schedule, Hooks>(params, work, own, shared).run();
    }
}
