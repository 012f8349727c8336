// NaN to the results of rows whose blocks a mask had no room for: they are incomplete, and no number would tell.
#include <schedule/sequence.cuh>
#include <tile/math.cuh>

__device__ __forceinline__ bool beyond(const BlockLists& lists, i64 place) {
    return lists.full_indptr[place] > lists.capacity || lists.partial_indptr[place] > lists.partial_capacity;
}

// What is poisoned where: rows of the lists that have no room, rows of heads that have such rows, or everything.
struct QueryRows {
    static constexpr bool kWholeHeads = false, kOfKeys = false;
    __device__ static const BlockLists& lists(const AttentionParams& params) { return params.lists; }
    __device__ static i32 heads(const AttentionParams& params) { return params.q_heads; }
    __device__ static const Extent& rows(const Sequence& sequence) { return sequence.q; }
};

// dq, where blocks of keys add it up: which of their lists a block was lost from, the rows of queries do not know.
struct QueryHeads : QueryRows {
    static constexpr bool kWholeHeads = true;
};

struct KeyRows {
    static constexpr bool kWholeHeads = false, kOfKeys = true;
    __device__ static const BlockLists& lists(const AttentionParams& params) { return params.transposed_lists; }
    __device__ static i32 heads(const AttentionParams& params) { return params.kv_heads; }
    __device__ static const Extent& rows(const Sequence& sequence) { return sequence.k; }
};

// Patterns lie where the lists of queries have their blocks: one that had no room there is nobody's to name, and which key
// misses it is not known.
template <class Side>
__device__ __forceinline__ bool incomplete(const BlockLists& lists, i64 head, i32 row) {
    const i64 end = head + lists.rows;
    return beyond(lists, Side::kWholeHeads ? end : head + row + 1) ||
           (Side::kOfKeys && lists.partial_indptr[end] > lists.partial_capacity);
}

// Whether a row of a head is incomplete by any of the lists it is made from: several, where each query head has its own.
template <class Side>
__device__ __forceinline__ bool incomplete(const BlockLists& lists, const Work& work, i32 heads) {
    const i32 per_list = max(1, heads / lists.heads), per_head = max(1, lists.heads / heads);
    const i64 batch = lists.batch == 1 ? 0 : work.batch;
    bool result = false;
    for (i32 n = 0; n < per_head; ++n) {
        const i64 head = (batch * lists.heads + work.head / per_list * per_head + n) * lists.rows;
        result |= incomplete<Side>(lists, head, work.tile);
    }
    return result;
}

template <int kThreads>
__device__ __forceinline__ void poison(const Operand& operand, const Work& work, i32 first, i32 count, i32 columns) {
    if (!given(operand)) return;
    u8* row = base(operand, work, work.head) + static_cast<i64>(first) * operand.row;
    for (i32 r = 0; r < count; ++r, row += operand.row)
        for (i32 c = thread_index(); c < columns; c += kThreads)
            store(operand, row + c * operand.column, static_cast<double>(float_of_bits(0x7fc00000u)));
}

template <class Side, int kThreads>
__device__ __forceinline__ void poison_rows(const AttentionParams& params) {
    const BlockLists& lists = Side::lists(params);
    if (!beyond(lists, static_cast<i64>(lists.batch) * lists.heads * lists.rows)) return;
    const i32 heads = Side::heads(params);
    const i64 items = static_cast<i64>(params.batch) * heads * lists.rows;
    for (i64 n = block_index(); n < items; n += block_count()) {
        Work work;
        work.tile = static_cast<i32>(n % lists.rows);
        work.head = static_cast<i32>(n / lists.rows % heads);
        set_batch(work, static_cast<i32>(n / lists.rows / heads), params.batch_extent);
        if (!incomplete<Side>(lists, work, heads)) continue;
        const Extent rows = Side::rows(sequence(params, work));
        const i32 first = work.tile * lists.row_size, count = max(0, min(lists.row_size, rows.length - first));
        poison<kThreads>(params.out, work, rows.start + first, count, params.v_dim);
        poison<kThreads>(params.lse, work, rows.start + first, count, 1);
        poison<kThreads>(params.stats, work, rows.start + first, count, 2);
        poison<kThreads>(params.sink_rows, work, rows.start + first, count, 1);
        poison<kThreads>(params.dq, work, rows.start + first, count, params.head_dim);
        poison<kThreads>(params.dk, work, rows.start + first, count, params.head_dim);
        poison<kThreads>(params.dv, work, rows.start + first, count, params.v_dim);
    }
}
