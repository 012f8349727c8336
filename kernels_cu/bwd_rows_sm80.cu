// Before the backward by tensor cores, for every segment of 16 query rows: the terms of its rows, zeros in its sums of dq,
// and its rows' shares of dsinks.
#include <bwd_rows.cu>
#include <tile/mma_gradient.cuh>

// Whether the forward rounded scores of the row as the backward does not: see kFarScore. P would be off by some powers of 2.
__device__ inline bool is_far(const AttentionParams& params, float reference) {
    return params.dout.dtype == kFloat16 && fabsf(reference) > kFarScore && fabsf(reference) < infinity<float>();
}

__device__ inline RowSums<float> row_sums(const AttentionParams& params, const Work& work, i64 row, i32 keys) {
    if (given(params.stats)) {
        const u8* stats = base(params.stats, work, work.head) + row * params.stats.row;
        return {load<float>(params.stats, stats), load<float>(params.stats, stats + params.stats.column)};
    }
    return sums_from_lse(load<float>(params.lse, base(params.lse, work, work.head) + row * params.lse.row), keys);
}

__device__ inline void store_terms(SegmentTerms<false>& to, i32 n, const RowSums<float>& sums, float delta) {
    const float lse = sums.reference - log2f(sums.inverse_sum);  // infinite where the row saw nothing
    const bool large = fabsf(lse) > kLarge && lse != infinity<float>();
    to.rows[n] = {large ? sums.reference : lse, delta};
    to.large.of_row[n] = large ? sums.inverse_sum : 0;
}

__device__ inline void store_terms(SegmentTerms<true>& to, i32 n, const RowSums<float>& sums, float delta) {
    to.rows[n] = {sums.reference, sums.inverse_sum, delta, 0};
}

// Rows between a sequence's last one and the end of its segment.
__device__ inline void store_nothing(SegmentTerms<false>& to, i32 n) {
    to.rows[n] = RowTerms<false>::nothing();
    to.large.of_row[n] = 0;
}

__device__ inline void store_nothing(SegmentTerms<true>& to, i32 n) { to.rows[n] = RowTerms<true>::nothing(); }

// d sink = -P(sink) * delta, for rows that saw a key.
__device__ inline void store_sink(
    const AttentionParams& params, const Work& work, i64 row, const RowSums<float>& sums, float delta) {
    TwoFloats exponent = multiplied(load<float>(params.sinks, base(params.sinks, work, work.head)), kLog2E);
    exponent.add(-sums.reference);
    u8* to = base(params.sink_rows, work, work.head) + row * params.sink_rows.row;
    const float share = -power_of_two(exponent.value()) * sums.inverse_sum * delta;
    store(params.sink_rows, to, sums.inverse_sum != 0 ? share : 0);
}

// dq_parts of one row: 1/16 of its segment's, by one warp.
__device__ inline void clear_parts(const Segments& parts, i32 row, u32 lane) {
    const i64 bytes = parts.step / kSegment;
    u8* own = parts.at(row) + row % kSegment * bytes;
    for (i64 byte = lane * kPiece; byte < bytes; byte += kWarp * kPiece) *reinterpret_cast<Piece*>(own + byte) = {};
}

// Of dsinks the shares of rows can be told here only where the forward's statistics say whether a row saw a key.
template <bool kPrecise, int kRows, int kThreads>
__device__ __forceinline__ void bwd_rows_sm80(const AttentionParams& params) {
    StaticScheduler scheduler(params, ceil_div(params.q_len, kRows), params.q_heads);
    const u32 lane = thread_index() % kWarp;
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        if (own.q.length == 0) continue;
        const Segments to = segments(params, params.row_terms, work, work.head, own.q);
        const i32 first = work.tile * kRows, end = min(first + kRows, ceil_div(own.q.length, kSegment) * kSegment);
        for_each_row<kThreads>(first, end, [&](i32 row, bool is_own) {
            if (is_own && given(params.dq_parts))
                clear_parts(segments(params, params.dq_parts, work, work.head, own.q), row, lane);
            const i64 at = own.q.start + min(row, own.q.length - 1);
            const float delta = row_delta<float>(params, work, at);
            if (!is_own || lane != 0) return;
            auto& terms = *reinterpret_cast<SegmentTerms<kPrecise>*>(to.at(row));
            if (row >= own.q.length) {
                store_nothing(terms, row % kSegment);
                return;
            }
            RowSums<float> sums = row_sums(params, work, at, own.k.length);
            if (is_far(params, sums.reference)) sums.inverse_sum = float_of_bits(0x7fffffffu);
            store_terms(terms, row % kSegment, sums, delta);
            if (given(params.sink_rows)) store_sink(params, work, at, sums, delta);
        });
    }
}
