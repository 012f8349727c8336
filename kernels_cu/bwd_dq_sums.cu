// Behind the backward by tensor cores: dq from the sums that blocks have added to, a warp a segment.
#include <ptx/reduce.cuh>
#include <schedule/segments.cuh>
#include <tile/mma_store.cuh>

template <class Tiles>
struct alignas(128) DqSumsShared {
    u8 stages[Tiles::kOwner * 128];
};

template <class Tiles>
__device__ __forceinline__ void bwd_dq_sums(const AttentionParams& params) {
    static_assert(Tiles::kMTiles == 1, "a warp a segment");
    auto& shared = shared_memory<DqSumsShared<Tiles>>();
    StaticScheduler scheduler(params, ceil_div(params.q_len, Tiles::kOwner), params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Extent q = sequence(params, work).q;
        const i32 first_row = work.tile * Tiles::kOwner + Tiles::first_warp_row();
        if (first_row >= q.allotted) continue;  // whole warps
        const Segments parts = segments(params, params.dq_parts, work, work.head, q);
        MmaResult<Tiles> dq = {};
        if (first_row < q.length) {  // beyond, nobody cleared them
            const float* own = reinterpret_cast<const float*>(parts.at(first_row));
#pragma unroll
            for (int n = 0; n < Tiles::kVDim / 8; ++n) {
                float sums[4];
                load_quads(sums, own + n * kQuads, Tiles::lane());
                dq.at[0][n] = {sums[0], sums[1]};
                dq.at[1][n] = {sums[2], sums[3]};
            }
        }
        finish(dq, static_cast<float>(params.scale), work.tile * Tiles::kOwner, q.length);
        const Target target = {params.dq, base(params.dq, work, work.head) + q.start * params.dq.row, first_row, q.allotted,
                               0, params.head_dim};
        store_any<128>(dq, shared.stages + Tiles::first_warp_row() * 128, target);
    }
}
