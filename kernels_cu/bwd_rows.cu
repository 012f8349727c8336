// Before the backward, for every query row: delta = sum(dout * out) - dlse, and, where the forward kept no statistics,
// those that follow from lse. Shared by all families.
#include <ptx/bits.cuh>
#include <schedule/sequence.cuh>
#include <tile/row_delta.cuh>
#include <tile/two_floats.cuh>

// What the forward knew of a row, or what stands in its place where only lse is there.
template <class Acc>
struct RowSums {
    Acc reference, inverse_sum;  // P = exp2(s - reference) * inverse_sum
};

// From lse a number of binary digits down that makes up half of log2(keys): half-way between lse and lse - log(keys) the
// arguments of the exponential are small, and with them their rounding errors, whether attention is spread or sharp.
__device__ inline i32 half_way(i32 keys) { return (31 - static_cast<i32>(leading_zeros(keys < 1 ? 1 : keys))) / 2; }

// What the reference loses when it is rounded goes into the factor.
__device__ inline RowSums<double> sums_from_lse(double lse, i32 keys) {
    if (lse == -infinity<double>()) return {0, 0};
    const double reference = lse * kLog2E - half_way(keys);
    return {reference, exp2(reference - lse * kLog2E)};
}

__device__ inline RowSums<float> sums_from_lse(float lse, i32 keys) {
    if (lse == -infinity<float>()) return {0, 0};
    const i32 down = half_way(keys);
    TwoFloats reference = multiplied(lse, kLog2E);
    reference.add(-static_cast<float>(down));
    return {reference.sum, float_of_bits((127 - down) << 23) * power_of_two(-reference.lost)};
}

template <class Acc>
__device__ inline void stats_from_lse(const AttentionParams& params, const Work& work, i64 row, i32 keys) {
    const Acc lse = load<Acc>(params.lse, base(params.lse, work, work.head) + row * params.lse.row);
    const RowSums<Acc> sums = sums_from_lse(lse, keys);
    u8* stats = base(params.stats, work, work.head) + row * params.stats.row;
    store(params.stats, stats, sums.reference);
    store(params.stats, stats + params.stats.column, sums.inverse_sum);
}

// f(row, is_own) for rows from `first` on, a warp each. A warp with no row left goes round with the last one: ptxas takes a
// branch that depends on the warp for one on which lanes part, and gives each shuffle behind it a second way, by a call.
template <int kThreads, class F>
__device__ __forceinline__ void for_each_row(i32 first, i32 end, F f) {
    constexpr i32 kWarps = kThreads / kWarp;
    const i32 warp = thread_index() / kWarp;
    for (i32 row = first; row < end; row += kWarps) f(min(row + warp, end - 1), row + warp < end);
}

// lse is given where the statistics have to be computed.
template <class Acc, int kRows, int kThreads>
__device__ __forceinline__ void bwd_rows(const AttentionParams& params) {
    StaticScheduler scheduler(params, ceil_div(params.q_len, kRows), params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        const i32 first = work.tile * kRows;
        for_each_row<kThreads>(first, min(first + kRows, own.q.length), [&](i32 row, bool is_own) {
            const Acc delta = row_delta<Acc>(params, work, own.q.start + row);
            if (!is_own || thread_index() % kWarp != 0) return;
            u8* to = base(params.delta, work, work.head) + static_cast<i64>(own.q.start + row) * params.delta.row;
            store(params.delta, to, delta);
            if (given(params.lse)) stats_from_lse<Acc>(params, work, own.q.start + row, own.k.length);
        });
    }
}
