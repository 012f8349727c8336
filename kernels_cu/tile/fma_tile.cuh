// Tiles of the generic family: products by plain FMA, operands converted to the accumulation type in shared memory.
//
// A block has kThreadRows x kLanes threads. Thread (ty, tx) holds the owner rows ty * kRows + r and the walked columns
// tx + kLanes * c of a score tile, and of a result tile the same rows and groups of kVec neighbouring columns.
#pragma once

#include <ptx/barrier.cuh>
#include <ptx/shared_memory.cuh>
#include <schedule/rows.cuh>
#include <tile/fragment.cuh>
#include <tile/math.cuh>
#include <tile/sum.cuh>

template <class Accumulator, int kOwner_, int kWalk_, int kDepth_, int kThreadRows_, int kLanes_, int kGroups_>
struct FmaTiles {
    using Acc = Accumulator;
    static constexpr int kOwner = kOwner_;            // owner rows of a tile
    static constexpr int kWalk = kWalk_;              // walked positions of a tile
    static constexpr int kDepth = kDepth_;            // of a product's inner dimension, at a time
    static constexpr int kThreadRows = kThreadRows_;
    static constexpr int kLanes = kLanes_;            // threads that share rows, neighbours in one warp
    static constexpr int kGroups = kGroups_;          // column groups of a result that a block computes
    static constexpr int kThreads = kThreadRows * kLanes;
    static constexpr int kVec = 16 / sizeof(Acc);
    static constexpr int kRows = kOwner / kThreadRows;
    static constexpr int kColumns = kWalk / kLanes;
    static constexpr int kGroupWidth = kLanes * kVec;
    static constexpr int kChunk = kGroups * kGroupWidth;  // result columns of a block
    // One vector more than a row needs: lanes that read the same column of neighbouring rows hit different banks.
    static constexpr int kDepthPitch = kDepth + kVec;
    static constexpr int kWalkPitch = kWalk + kVec;

    __device__ static __forceinline__ int thread_row() { return thread_index() / kLanes; }
    __device__ static __forceinline__ int thread_lane() { return thread_index() % kLanes; }
    // What hooks ask of a kind of tiles: whether a factor may be left to the softmax, whether a thread's scores are the
    // patches of mma fragments, whether arrays beside q, k, v hold aligned elements of at most 32 bits; whether gradients
    // of products are left without their factor `scale`, which results then get.
    static constexpr bool kFolds = false, kPatches = false, kAlignedOperands = false, kLeavesScale = false;
    __device__ static double scale(const AttentionParams& params) { return params.scale; }
    __device__ static __forceinline__ Acc tanh(Acc x) { return hyperbolic_tangent(x); }
    // Where score (r, c) of a thread lies in the tile.
    __device__ static __forceinline__ int local_row(int r) { return thread_row() * kRows + r; }
    __device__ static __forceinline__ int local_column(int c) { return thread_lane() + kLanes * c; }

    static_assert(kOwner % kThreadRows == 0 && kWalk % kLanes == 0, "threads share a tile evenly");
    static_assert(kLanes <= 32 && 32 % kLanes == 0, "row sums are shuffles within a warp");
    static_assert(kThreads % 32 == 0 && kThreads <= 1024, "whole warps");
    static_assert(kOwner % 16 == 0 && kWalk % 16 == 0 && kWalk <= 64, "segments of 16; one partial sum per 64 keys at most");
    static_assert(kDepth % kVec == 0, "vector loads from shared memory");
    static_assert(kRows * kColumns <= 32, "visibility of a thread's scores is one word");
};

template <class T>
struct alignas(16) Vec {
    static constexpr int kSize = 16 / sizeof(T);
    T at[kSize];
};

// Shared memory of the products. Operand chunks and result rows are never alive together.
template <class Tiles>
struct alignas(16) ProductShared {
    using Acc = typename Tiles::Acc;
    union {
        struct {
            alignas(16) Acc owner[Tiles::kOwner][Tiles::kDepthPitch];
            alignas(16) Acc walked[Tiles::kWalk][Tiles::kDepthPitch];
        };
        alignas(16) Acc rows[Tiles::kWalk][Tiles::kGroupWidth];
    };
    alignas(16) Acc weights[Tiles::kOwner][Tiles::kWalkPitch];
};

// All that a block shares whose tiles a schedule yields.
template <class Tiles, class Schedule>
struct TileShared {
    ProductShared<Tiles> product;
    typename Schedule::Shared schedule;
};

// A thread's part of a result tile.
template <class Tiles, int kGroups = Tiles::kGroups>
struct Result {
    CompensatedSum<typename Tiles::Acc> at[kGroups][Tiles::kRows][Tiles::kVec];
};

// Elements at any address, byte by byte: right, not fast.
template <class Tiles, int kWidth, int kCount, int kPitch, class At>
__device__ __forceinline__ void copy_unaligned(
    typename Tiles::Acc (&to)[kCount][kPitch], const Rows& from, const At& at, i32 first, i32 columns) {
#pragma unroll 1
    for (int place = thread_index(); place < kCount * kWidth; place += Tiles::kThreads) {
        const i32 column = first + place % kWidth;
        const u8* row = from.row(at(place / kWidth));
        const bool inside = row != nullptr && column < columns;
        to[place / kWidth][place % kWidth] =
            inside ? load<typename Tiles::Acc>(from.operand, row + column * from.operand.column) : 0;
    }
}

// Rows [0, kCount) of a chunk, `at(r)` telling their coordinates, columns [first, first + kWidth), zeros beyond `columns`.
// A thread has several loads in flight before it stores the first.
template <class Tiles, int kWidth, int kCount, int kPitch, class At>
__device__ __forceinline__ void copy_chunk(
    typename Tiles::Acc (&to)[kCount][kPitch], const Rows& from, const At& at, i32 first, i32 columns) {
    using Acc = typename Tiles::Acc;
    constexpr int kEach = kCount * kWidth / Tiles::kThreads;
    constexpr int kBatch = kEach < 4 ? kEach : 4;
    static_assert(kCount * kWidth % Tiles::kThreads == 0 && kEach % kBatch == 0, "threads share a chunk evenly");
    if (from.operand.unaligned) return copy_unaligned<Tiles, kWidth>(to, from, at, first, columns);
#pragma unroll 1
    for (int done = 0; done < kEach; done += kBatch) {
        Raw<Acc> raw[kBatch];
        u32 inside = 0;
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
            const int place = (done + n) * Tiles::kThreads + thread_index();
            const i32 column = first + place % kWidth;
            const u8* row = from.row(at(place / kWidth));
            if (row == nullptr || column >= columns) continue;
            raw[n].read(from.operand, row + column * from.operand.column);
            inside |= 1u << n;
        }
#pragma unroll
        for (int n = 0; n < kBatch; ++n) {
            const int place = (done + n) * Tiles::kThreads + thread_index();
            to[place / kWidth][place % kWidth] = inside >> n & 1u ? raw[n].value(from.operand) : 0;
        }
    }
}

// scores = owner rows times walked rows, over `depth` columns. Starts with a barrier: shared memory may be in use.
template <class Tiles, class Tile>
__device__ __forceinline__ void product(
    Fragment<Tiles>& scores, ProductShared<Tiles>& shared, const Rows& owner, i32 first_row, const Rows& walked,
    const Tile& tile, i32 depth) {
    using V = Vec<typename Tiles::Acc>;
    for (auto& row : scores.at)
        for (auto& score : row) score = 0;
    for (i32 first = 0; first < depth; first += Tiles::kDepth) {
        block_sync();
        copy_chunk<Tiles, Tiles::kDepth>(shared.owner, owner, [&](int r) { return first_row + r; }, first, depth);
        copy_chunk<Tiles, Tiles::kDepth>(shared.walked, walked, [&](int n) { return tile.at(n); }, first, depth);
        block_sync();
        const int row = Tiles::thread_row() * Tiles::kRows, lane = Tiles::thread_lane();
        for (int d = 0; d < Tiles::kDepth; d += Tiles::kVec) {
            V a[Tiles::kRows], b[Tiles::kColumns];
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r) a[r] = *reinterpret_cast<const V*>(&shared.owner[row + r][d]);
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c)
                b[c] = *reinterpret_cast<const V*>(&shared.walked[lane + Tiles::kLanes * c][d]);
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
                for (int c = 0; c < Tiles::kColumns; ++c)
#pragma unroll
                    for (int v = 0; v < Tiles::kVec; ++v)
                        scores.at[r][c] = multiply_add(a[r].at[v], b[c].at[v], scores.at[r][c]);
        }
    }
}

// Hand the weights to the block. The barrier that makes them visible is the first of the product that reads them.
template <class Tiles>
__device__ __forceinline__ void share_weights(ProductShared<Tiles>& shared, const Fragment<Tiles>& weights) {
    const int row = Tiles::thread_row() * Tiles::kRows, lane = Tiles::thread_lane();
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) shared.weights[row + r][lane + Tiles::kLanes * c] = weights.at[r][c];
}

// result += weights times walked rows, columns [first, first + kChunk). Each tile's sum starts from zero, so that rounding
// errors grow with the number of tiles, not of keys. Where kMasked, a weight of zero takes nothing from its row: not even
// a NaN, which rows that are hidden may hold.
template <bool kMasked, class Tiles, class Tile>
__device__ __forceinline__ void accumulate(
    Result<Tiles>& result, ProductShared<Tiles>& shared, const Rows& walked, const Tile& tile, i32 first, i32 columns) {
    using Acc = typename Tiles::Acc;
    using V = Vec<Acc>;
    const int row = Tiles::thread_row() * Tiles::kRows, lane = Tiles::thread_lane();
#pragma unroll
    for (int group = 0; group < Tiles::kGroups; ++group) {
        const i32 start = first + group * Tiles::kGroupWidth;
        if (start >= columns) break;
        block_sync();
        copy_chunk<Tiles, Tiles::kGroupWidth>(shared.rows, walked, [&](int n) { return tile.at(n); }, start, columns);
        block_sync();
        Acc sum[Tiles::kRows][Tiles::kVec] = {};
        for (int n = 0; n < Tiles::kWalk; n += Tiles::kVec) {
            V w[Tiles::kRows], x[Tiles::kVec];
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r) w[r] = *reinterpret_cast<const V*>(&shared.weights[row + r][n]);
#pragma unroll
            for (int v = 0; v < Tiles::kVec; ++v)
                x[v] = *reinterpret_cast<const V*>(&shared.rows[n + v][lane * Tiles::kVec]);
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
                for (int c = 0; c < Tiles::kVec; ++c) {
                    // A sum of its own for each vector: a quarter of the roundings at the size of the whole sum.
                    Acc part = 0;
#pragma unroll
                    for (int v = 0; v < Tiles::kVec; ++v) {
                        const Acc weighted = multiply_add(w[r].at[v], x[v].at[c], part);
                        part = !kMasked || w[r].at[v] != 0 ? weighted : part;
                    }
                    sum[r][c] += part;
                }
        }
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Tiles::kVec; ++c) result.at[group][r][c].add(sum[r][c]);
    }
}

struct Unchanged {
    template <class Acc>
    __device__ Acc operator()(int, Acc value) const { return value; }
};

// Write a result tile, each value as `finish(r, value)` makes it; rows [length, allotted) get zeros.
template <class Tiles, class Finish = Unchanged>
__device__ __forceinline__ void store_result(
    const Result<Tiles>& result, const Operand& operand, u8* base, i32 first_row, i32 length, i32 allotted, i32 first,
    i32 columns, Finish finish = {}) {
#pragma unroll
    for (int group = 0; group < Tiles::kGroups; ++group)
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int v = 0; v < Tiles::kVec; ++v) {
                const i32 row = first_row + Tiles::thread_row() * Tiles::kRows + r;
                const i32 column = first + group * Tiles::kGroupWidth + Tiles::thread_lane() * Tiles::kVec + v;
                if (row < allotted && column < columns)
                    store(operand, base + row * operand.row + column * operand.column,
                          row < length ? finish(r, result.at[group][r][v].value()) : 0);
            }
}
