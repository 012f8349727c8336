// Before the backward, for every query row: delta = sum(dout * out) - dlse, and, where the forward kept no statistics,
// those that follow from lse. Shared by all families.
#include <ptx/shuffle.cuh>
#include <schedule/sequence.cuh>
#include <tile/math.cuh>
#include <tile/row_delta.cuh>

// Half-way between lse and lse - log(keys), in units of log2, the arguments of the exponential are small, and with them
// their rounding errors, whether attention is spread or sharp.
__device__ inline double middle_reference(double lse, i32 keys) {
    return lse - 0.5 * log2(static_cast<double>(keys < 1 ? 1 : keys));
}

// What the reference loses when it is rounded goes into the factor.
template <class Acc>
__device__ inline void stats_from_lse(const AttentionParams& params, const Work& work, i64 row, i32 keys) {
    const double lse = load<double>(params.lse, base(params.lse, work, work.head) + row * params.lse.row);
    const bool saw = lse != -infinity<double>();
    const Acc reference = saw ? static_cast<Acc>(middle_reference(lse * kLog2E, keys)) : 0;
    u8* stats = base(params.stats, work, work.head) + row * params.stats.row;
    store(params.stats, stats, reference);
    store(params.stats, stats + params.stats.column,
          saw ? static_cast<Acc>(exp2(static_cast<double>(reference) - lse * kLog2E)) : 0);
}

// lse is given where the statistics have to be computed.
template <class Acc, int kRows, int kThreads>
__device__ __forceinline__ void bwd_rows(const AttentionParams& params) {
    StaticScheduler scheduler(params, ceil_div(params.q_len, kRows), params.q_heads);
    for (Work work; scheduler.next(work);) {
        const Sequence own = sequence(params, work);
        for (i32 n = thread_index() / kWarp; n < kRows; n += kThreads / kWarp) {
            const i32 row = work.tile * kRows + n;
            if (row >= own.q.length) break;
            const double delta = row_delta(params, work, own.q.start + row);
            if (thread_index() % kWarp != 0) continue;
            u8* to = base(params.delta, work, work.head) + static_cast<i64>(own.q.start + row) * params.delta.row;
            store(params.delta, to, static_cast<Acc>(delta));
            if (given(params.lse)) stats_from_lse<Acc>(params, work, own.q.start + row, own.k.length);
        }
    }
}
