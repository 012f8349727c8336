// Gradients of a tile's scores: P from the forward's statistics, dP = dout v^T, dS = P * (dP - delta).
#pragma once

#include <score/hooks.cuh>
#include <tile/visibility.cuh>

// What a query row brings to its gradients.
template <class Acc>
struct RowStats {
    Acc reference;    // P = exp2(s - reference) * inverse_sum
    Acc inverse_sum;
    Acc delta;        // sum of P * dP over the row, minus dlse
};

template <class Acc>
__device__ __forceinline__ RowStats<Acc> load_stats(
    const AttentionParams& params, const Work& work, i32 head, const Extent& q, i32 row) {
    if (row >= q.length) return {0, 0, 0};
    const u8* stats = base(params.stats, work, head) + (q.start + row) * params.stats.row;
    const u8* delta = base(params.delta, work, head) + (q.start + row) * params.delta.row;
    return {load<Acc>(params.stats, stats), load<Acc>(params.stats, stats + params.stats.column),
            load<Acc>(params.delta, delta)};
}

// The operands of one query head, seen from the tile's owner: scores = owner_a walked_a^T, dP = owner_b walked_b^T.
struct GradientOperands {
    Rows owner_a, walked_a;
    Rows owner_b, walked_b;
};

// Owner = queries.
__device__ __forceinline__ GradientOperands query_operands(
    const AttentionParams& params, const Work& work, i32 head, i32 kv_head, const Sequence& sequence) {
    return {rows(params.q, work, head, sequence.q), rows(params.k, work, kv_head, sequence.k),
            rows(params.dout, work, head, sequence.q), rows(params.v, work, kv_head, sequence.k)};
}

// Owner = keys.
__device__ __forceinline__ GradientOperands key_operands(
    const AttentionParams& params, const Work& work, i32 head, i32 kv_head, const Sequence& sequence) {
    return {rows(params.k, work, kv_head, sequence.k), rows(params.q, work, head, sequence.q),
            rows(params.v, work, kv_head, sequence.k), rows(params.dout, work, head, sequence.q)};
}

// `weights` are P after dropout, not yet scaled up; `gradients` are dS. `stats(r, c)` are those of the score's query.
template <bool kMasked, class Tiles, class Hooks, class Place, class Tile, class Stats>
__device__ __forceinline__ void score_gradients(
    Fragment<Tiles>& weights, Fragment<Tiles>& gradients, Bits<Tiles>& visible, ProductShared<Tiles>& shared, Hooks& hooks,
    const Place& place, const Tile& tile, const GradientOperands& operands, i32 head_dim, i32 v_dim, const Stats& stats) {
    using Acc = typename Tiles::Acc;
    product<Tiles>(weights, shared, operands.owner_a, place.first_row, operands.walked_a, tile, head_dim);
    product<Tiles>(gradients, shared, operands.owner_b, place.first_row, operands.walked_b, tile, v_dim);
    hooks.hide(visible, place);
    hooks.scores(weights, visible, place);
    Bits<Tiles> kept = equal_bits<Tiles>(true);
    hooks.drop(kept, place);
    const Acc survivors = static_cast<Acc>(hooks.survivors());
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) {
            const RowStats<Acc> row = stats(r, c);
            const bool hidden = kMasked && !visible(r, c);
            const Acc weight = power_of_two(weights.at[r][c] - row.reference) * row.inverse_sum;
            const Acc upstream = kept(r, c) ? gradients.at[r][c] * survivors : 0;
            gradients.at[r][c] = hidden ? 0 : weight * (upstream - row.delta);
            weights.at[r][c] = hidden || !kept(r, c) ? 0 : weight;
        }
}
