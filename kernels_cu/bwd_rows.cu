// Before the backward, for every query row: delta = sum(dout * out) - dlse, and, where the forward kept no statistics,
// those that follow from lse. Shared by all families.
#include <ptx/shuffle.cuh>
#include <schedule/sequence.cuh>
#include <tile/math.cuh>

constexpr int kWarp = 32;

// One row by one warp. In double: where a row sees few keys dP - delta cancels, and delta's error is all that is left.
__device__ inline double row_delta(const AttentionParams& params, const Work& work, i64 row) {
    const u8* out = base(params.out, work, work.head) + row * params.out.row;
    const u8* dout = base(params.dout, work, work.head) + row * params.dout.row;
    double delta = 0;
    for (i32 column = thread_index() % kWarp; column < params.v_dim; column += kWarp)
        delta += load<double>(params.out, out + column * params.out.column) *
                 load<double>(params.dout, dout + column * params.dout.column);
    for (u32 mask = kWarp / 2; mask > 0; mask /= 2) delta += shuffle_xor(delta, mask);
    if (given(params.dlse))
        delta -= load<double>(params.dlse, base(params.dlse, work, work.head) + row * params.dlse.row);
    return delta;
}

// Half-way between lse and lse - log(keys) the arguments of the exponential are small, and with them their rounding
// errors, whether attention is spread or sharp. What the reference loses when it is rounded goes into the factor.
template <class Acc>
__device__ inline void stats_from_lse(const AttentionParams& params, const Work& work, i64 row, i32 keys) {
    const double lse = load<double>(params.lse, base(params.lse, work, work.head) + row * params.lse.row);
    const bool saw = lse != -infinity<double>();
    const double middle = lse * kLog2E - 0.5 * log2(static_cast<double>(keys < 1 ? 1 : keys));
    const Acc reference = saw ? static_cast<Acc>(middle) : 0;
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
