// dsinks: the shares of all rows of a head, summed in double and in one order by one block.
#include <ptx/barrier.cuh>
#include <ptx/shared_memory.cuh>
#include <schedule/sequence.cuh>

struct SumSinksParams {
    AttentionParams attention;
    Operand dsinks;  // by head
};

template <int kThreads>
struct SumSinksShared {
    double parts[kThreads];
};

template <int kThreads>
__device__ __forceinline__ void sum_sinks(const SumSinksParams& params) {
    auto& shared = shared_memory<SumSinksShared<kThreads>>();
    const AttentionParams& attention = params.attention;
    const i32 head = block_index();
    double sum = 0;
    Work work;
    for (i32 batch = 0; batch < attention.batch; ++batch) {
        set_batch(work, batch, attention.batch_extent);
        const Extent q = sequence(attention, work).q;
        const u8* rows = base(attention.sink_rows, work, head) + q.start * attention.sink_rows.row;
        for (i32 row = thread_index(); row < q.length; row += kThreads)
            sum += load<double>(attention.sink_rows, rows + row * attention.sink_rows.row);
    }
    shared.parts[thread_index()] = sum;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        block_sync();
        if (thread_index() < half) shared.parts[thread_index()] += shared.parts[thread_index() + half];
    }
    if (thread_index() == 0) store(params.dsinks, params.dsinks.data + head * params.dsinks.head, shared.parts[0]);
}
