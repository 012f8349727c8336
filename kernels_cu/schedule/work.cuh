// Which piece of the problem a block computes next. The policy is here, outside the kernels: one piece a block so far.
#pragma once

#include <params.cuh>
#include <ptx/special_registers.cuh>

// A tile of rows of one head of one batch entry, and which of the column chunks of its result.
struct Work {
    i32 tile;
    i32 chunk;
    i32 head;
    i32 batch;
    i32 batch_index[kBatchDims];
};

__device__ __forceinline__ i32 ceil_div(i32 a, i32 b) { return (a + b - 1) / b; }

__device__ __forceinline__ void set_batch(Work& work, i32 batch, const i32 (&extent)[kBatchDims]) {
    work.batch = batch;
    for (int dim = kBatchDims - 1; dim >= 0; --dim) {
        work.batch_index[dim] = batch % extent[dim];
        batch /= extent[dim];
    }
}

// Where (batch, head) of an operand starts.
__device__ __forceinline__ u8* base(const Operand& operand, const Work& work, i32 head) {
    i64 offset = head * operand.head;
    for (int dim = 0; dim < kBatchDims; ++dim) offset += work.batch_index[dim] * operand.batch[dim];
    return operand.data + offset;
}

// Which tiles come first: the long ones shall. Under a causal mask those are the last queries and the first keys.
enum class Order { kLastFirst, kFirstFirst };

// One piece a block. Tiles are neighbours, so that blocks that run together share what they walk in L2.
class StaticScheduler {
public:
    __device__ StaticScheduler(const AttentionParams& params, i32 tiles, i32 heads, Order order = Order::kLastFirst)
        : params_(params), order_(order), tiles_(tiles), heads_(heads), next_(block_index()) {}

    __device__ bool next(Work& work) {
        if (next_ == kDone) return false;
        u32 rest = next_;
        next_ = kDone;
        work.tile = static_cast<i32>(rest % tiles_);
        if (order_ == Order::kLastFirst) work.tile = tiles_ - 1 - work.tile;
        rest /= tiles_;
        work.chunk = rest % params_.chunks;
        rest /= params_.chunks;
        work.head = rest % heads_;
        set_batch(work, rest / heads_, params_.batch_extent);
        return true;
    }

private:
    static constexpr u32 kDone = 0xffffffffu;  // grids end below 2^31
    const AttentionParams& params_;
    const Order order_;
    u32 tiles_, heads_, next_;
};

// The pieces of a computed schedule: all tiles there are. Of lists it is ListScheduler.
class BandScheduler : public StaticScheduler {
public:
    __device__ BandScheduler(const AttentionParams& params, const BlockLists&, i32 tile_rows, i32 length, i32 heads,
                             Order order = Order::kLastFirst)
        : StaticScheduler(params, ceil_div(length, tile_rows), heads, order) {}
};
