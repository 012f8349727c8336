// Tiles of the tensor-core families: fragments of mma.sync, operands as they are in swizzled shared memory.
//
// A warp owns 16 * kMTiles rows of a tile. Lane 4 g + t holds, of each 16 x 8 accumulator, rows g and g + 8 and columns 2 t
// and 2 t + 1: in a fragment rows 2 m, 2 m + 1 and columns 2 n, 2 n + 1. Two accumulators side by side are, rounded, the
// left operand of the product with values: weights never leave registers.
#pragma once

#include <ptx/approximate.cuh>
#include <ptx/mma.cuh>
#include <ptx/shared_memory.cuh>
#include <ptx/special_registers.cuh>
#include <schedule/work.cuh>
#include <tile/fragment.cuh>
#include <tile/math.cuh>

// How elements of q, k and v are multiplied. Where kRounds, they are rounded once, in shared memory. Where kOverflows, their
// exponents have a smaller range than float32's.
struct F16 {
    static constexpr bool kSplit = false, kRounds = false, kOverflows = true;
    static constexpr u32 kSign = 0x80008000u;
    static constexpr int kItem = 2;
    __device__ static __forceinline__ u32 pack(float low, float high) { return pack_f16(low, high); }
    __device__ static __forceinline__ void multiply(
        float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1) {
        mma_f16(d0, d1, d2, d3, a, b0, b1);
    }
};

struct BF16 {
    static constexpr bool kSplit = false, kRounds = false, kOverflows = false;
    static constexpr u32 kSign = 0x80008000u;
    static constexpr int kItem = 2;
    __device__ static __forceinline__ u32 pack(float low, float high) { return pack_bf16(low, high); }
    __device__ static __forceinline__ void multiply(
        float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1) {
        mma_bf16(d0, d1, d2, d3, a, b0, b1);
    }
};

// float32 rounded to 10 bits of mantissa. The hardware drops the others: half a unit first makes that rounding, and
// would make numbers of some NaN, which the dropped bits may be all of.
struct TF32 {
    static constexpr bool kSplit = false, kRounds = true, kOverflows = false;
    static constexpr u32 kSign = 0x80000000u;
    static constexpr int kItem = 4;
    __device__ static __forceinline__ void multiply(
        float& d0, float& d1, float& d2, float& d3, const u32 (&a)[4], u32 b0, u32 b1) {
        mma_tf32(d0, d1, d2, d3, a, b0, b1);
    }
    __device__ static __forceinline__ u32 rounded(u32 bits) {
        const float value = float_of_bits(bits);
        return value == value ? bits + 0x1000u : kNan;
    }
    // The same of anything: the sum may neither become infinity nor lend it a mantissa.
    __device__ static __forceinline__ u32 rounded_any(u32 bits) {
        return fabsf(float_of_bits(bits)) <= float_of_bits(kMost) ? bits + 0x1000u : rounded_special(bits);
    }

private:
    static constexpr u32 kNan = 0x7fffffffu;
    static constexpr u32 kMost = 0x7f7fefffu;
    __device__ static __forceinline__ u32 rounded_special(u32 bits) {
        const float value = float_of_bits(bits);
        return value == value ? bits : kNan;
    }
};

// float32 as the sum of two TF32 numbers: three products of them hold 22 bits (Ootomo and Yokota 2022).
struct SplitTF32 : TF32 {
    static constexpr bool kSplit = true, kRounds = false;
};

// Beyond it a score is rounded, as the reference was, before that is subtracted, where weights overflow: multiply_add does
// not round it, and what the reference was rounded by would take a row's largest weight out of float16's range.
constexpr float kFarScore = 1 << 27;

// Rows in shared memory are half of the 32 banks, or whole rounds of them: where a row of a column lies is its swizzle's.
__device__ constexpr int pitch_of(int bytes) { return bytes <= 64 ? 64 : (bytes + 127) / 128 * 128; }

template <class Kind_, int kOwner_, int kWalk_, int kHeadDim_, int kVDim_, int kWarps_, int kStages_, int kHeads_ = 1>
struct MmaTiles {
    using Kind = Kind_;
    using Acc = float;
    static constexpr int kOwner = kOwner_;      // owner rows of a tile
    static constexpr int kWalk = kWalk_;        // walked positions of a tile
    static constexpr int kHeadDim = kHeadDim_;  // columns of q and k, zeros beyond those that there are
    static constexpr int kVDim = kVDim_;        // columns of v that a block computes
    static constexpr int kWarps = kWarps_;
    static constexpr int kStages = kStages_;    // tiles of k and of v in shared memory
    // Heads that own a tile together: the same kHeadRows rows of each, head after head, where all walk the same tiles.
    static constexpr int kHeads = kHeads_;
    static constexpr int kHeadRows = kOwner / kHeads;
    static constexpr int kThreads = 32 * kWarps;
    static constexpr int kMTiles = kOwner / (16 * kWarps);
    static constexpr int kRows = 2 * kMTiles;
    static constexpr int kColumns = kWalk / 4;
    static constexpr int kLanes = 4;            // that share rows
    static constexpr int kHeadBytes = kHeadDim * Kind::kItem;
    static constexpr int kVBytes = kVDim * Kind::kItem;
    static constexpr int kHeadPitch = pitch_of(kHeadBytes);
    static constexpr int kVPitch = pitch_of(kVBytes);
    static constexpr bool kPrecise = Kind::kSplit;
    using OwnRow = u32;  // of the owner's rows that a lane loads: its sign decides what their swizzle takes

    // What hooks ask of a kind of tiles, see FmaTiles.
    static constexpr bool kFolds = !kPrecise, kLeavesScale = true, kPatches = true, kAlignedOperands = true;
    // q is negated where the scale is: the softmax takes its maximum before it scales. Zero would turn -inf into NaN.
    __device__ static double scale(const AttentionParams& params) { return fmax(fabs(params.scale), 1e-37); }
    __device__ static __forceinline__ float tanh(float x) {
        if constexpr (kPrecise) return hyperbolic_tangent(x);
        const float twice = static_cast<float>(2 * kLog2E) * x;
        return multiply_add(-2.0f, reciprocal_approximate(exp2_approximate(twice) + 1), 1.0f);
    }
    // 2^x: subnormal results are 0 where weights are rounded to few bits anyway.
    __device__ static __forceinline__ float exp2(float x) {
        if constexpr (kPrecise) return power_of_two(x);
        return exp2_approximate(x);
    }

    __device__ static __forceinline__ int lane() { return thread_index() % 32; }
    __device__ static __forceinline__ int thread_lane() { return thread_index() % kLanes; }
    __device__ static __forceinline__ int first_warp_row() { return thread_index() / 32 * 16 * kMTiles; }
    __device__ static __forceinline__ int local_row(int r, u32 thread = thread_index()) {
        return thread / 32 * 16 * kMTiles + r / 2 * 16 + r % 2 * 8 + thread % 32 / 4;
    }
    // Which of the tile's heads the warp's rows are of; the work is of the first.
    __device__ static __forceinline__ i32 warp_head() {
        return kHeads == 1 ? 0 : static_cast<i32>(thread_index_anew() / 32) / (kWarps / kHeads);
    }
    __device__ static __forceinline__ i32 head(const Work& work) { return work.head + warp_head(); }
    // The first row of the sequence that the tile has.
    __device__ static __forceinline__ i32 first_tile_row(const Work& work) { return work.tile * kHeadRows; }
    // What the warp's rows count from: row local_row(r) of the tile is row first_row(work) + local_row(r) of the sequence.
    __device__ static __forceinline__ i32 first_row(const Work& work) { return (work.tile - warp_head()) * kHeadRows; }
    __device__ static __forceinline__ int local_column(int c) { return c / 2 * 8 + thread_lane() * 2 + c % 2; }

    static_assert(kOwner % (16 * kWarps) == 0 && kWalk % 16 == 0, "whole fragments; segments of 16");
    static_assert(kWarps % kHeads == 0, "a warp's rows are one head's");
    static_assert(kHeadBytes % 64 == 0 && kVBytes % 64 == 0, "two steps of a product at a time");
    static_assert(kThreads <= 1024 && (kStages == 1 || kStages == 2), "one tile in use, at most one ahead");
    static_assert(!kPrecise || kWalk <= 64, "one partial sum per 64 keys at most");
};

// By which a row's bytes are permuted: 16-byte pieces of eight neighbouring rows, and of neighbours in a row, lie in
// different banks.
template <int kPitch, class Row>
__device__ __forceinline__ int swizzle_of(Row row) { return kPitch == 64 ? row / 2 % 4 * 16 : row % 8 * 16; }

// Where byte `byte` of row `row` lies. Of signed rows the remainder would take four instructions more.
template <int kPitch>
__device__ __forceinline__ int swizzled(u32 row, int byte) { return row * kPitch + (byte ^ swizzle_of<kPitch>(row)); }

// What a lane reads or writes of swizzled rows: bytes of its own row, and of those a multiple of 8 below, which swizzle
// alike. Offsets that the compiler knows stay apart from the lane's, so that few addresses serve all.
template <int kPitch>
struct LaneRows {
    u32 start, swizzle;  // addresses in shared memory: generic ones would take twice the arithmetic

    template <class Row>
    __device__ __forceinline__ LaneRows(const u8* rows, Row row, u32 byte)
        : start(shared_address(rows) + row * kPitch + byte % 16), swizzle(byte / 16 * 16 ^ swizzle_of<kPitch>(row)) {}
    __device__ __forceinline__ const u8* at(u32 rows_below, u32 byte) const {
        return shared_pointer(start + (swizzle ^ byte % 128) + below(rows_below, byte));
    }
    // The same by one instruction less, of rows that start at multiples of what their swizzle permutes: 64 or 128 bytes.
    // Not in the products: there ptxas lacks a register then, and the backward of D = 64 spills on Hopper.
    __device__ __forceinline__ u8* permuted(u32 rows_below, u32 byte) const {
        return const_cast<u8*>(shared_pointer(((start + swizzle) ^ byte % 128) + below(rows_below, byte)));
    }

private:
    __device__ __forceinline__ static u32 below(u32 rows_below, u32 byte) { return rows_below * kPitch + byte / 128 * 128; }
};

// Shared memory of a block. Rows hold whole buckets, zeros where the problem has less.
template <class Tiles, class Schedule>
struct alignas(128) MmaShared {
    u8 q[Tiles::kOwner * Tiles::kHeadPitch];
    u8 k[Tiles::kStages][Tiles::kWalk * Tiles::kHeadPitch];
    u8 v[Tiles::kStages][Tiles::kWalk * Tiles::kVPitch];
    // What the block computes, and row 0 of its keys and values: the loop over tiles needs the registers.
    Work work;
    const u8 *k_base, *v_base;
    typename Schedule::Shared schedule;
};
