// Products of tiles by tensor cores, for operands that one product each is enough for; mma_split.cuh has the others.
#pragma once

#include <ptx/ldmatrix.cuh>
#include <ptx/shuffle.cuh>
#include <tile/mma_tile.cuh>
#include <tile/pair_sum.cuh>

// A step of a product takes two 16-byte pieces of a row, whatever the elements: bytes of q and k lie alike in fragments.
constexpr int kStepBytes = 32;

// A warp's part of a result tile of kWidth columns.
template <class Tiles, int kWidth = Tiles::kVDim>
struct MmaResult {
    static constexpr int kTiles = kWidth / 8;
    typename SumsFor<Tiles::kPrecise>::Pair at[Tiles::kRows][kTiles];
};

// Left operands: the warp's owner rows; at(16 m, step * kStepBytes) is where the lane's row of step `step` lies.
template <class Tiles, int kPitch>
__device__ __forceinline__ LaneRows<kPitch> left_rows(const u8* owner) {
    const u32 thread = thread_index_anew(), lane = thread % 32;
    return {owner, static_cast<typename Tiles::OwnRow>(thread / 32 * 16 * Tiles::kMTiles + lane % 16), lane / 16 * 16};
}

// Right operands: 16 walked rows at a time; at(8 n, step * kStepBytes).
template <int kPitch>
__device__ __forceinline__ LaneRows<kPitch> right_rows(const u8* walked) {
    const u32 lane = thread_index_anew() % 32;
    return {walked, lane % 8 + lane / 16 * 8, lane / 8 % 2 * 16};
}

// Accumulator (m, n) of a fragment += a b.
template <class Tiles>
__device__ __forceinline__ void multiply(Fragment<Tiles>& to, int m, int n, const u32 (&a)[4], u32 b0, u32 b1) {
    Tiles::Kind::multiply(to.at[2 * m][2 * n], to.at[2 * m][2 * n + 1], to.at[2 * m + 1][2 * n],
                          to.at[2 * m + 1][2 * n + 1], a, b0, b1);
}

template <class Tiles, int kPitch>
__device__ __forceinline__ void product_step(
    Fragment<Tiles>& scores, const LaneRows<kPitch>& left, const LaneRows<kPitch>& right, int step) {
    u32 a[Tiles::kMTiles][4];
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) load_matrices(a[m], left.at(16 * m, step * kStepBytes));
#pragma unroll
    for (int n = 0; n < Tiles::kWalk / 8; n += 2) {
        u32 b[4];
        load_matrices(b, right.at(8 * n, step * kStepBytes));
#pragma unroll
        for (int m = 0; m < Tiles::kMTiles; ++m) {
            multiply(scores, m, n, a[m], b[0], b[1]);
            multiply(scores, m, n + 1, a[m], b[2], b[3]);
        }
    }
}

// scores = owner walked^T, over rows of kBytes that are kPitch apart.
template <int kBytes, int kPitch, class Tiles>
__device__ __forceinline__ void product(Fragment<Tiles>& scores, const u8* owner, const u8* walked) {
    for (auto& row : scores.at)
        for (float& score : row) score = 0;
    const auto left = left_rows<Tiles, kPitch>(owner);
    const auto right = right_rows<kPitch>(walked);
    // The first steps apart: where the compiler sees them, sums start from no register. Unrolled in full the loads of all
    // steps come first, and take registers that there are not.
    product_step(scores, left, right, 0);
    product_step(scores, left, right, 1);
#pragma unroll 3
    for (int step = 2; step < kBytes / kStepBytes; ++step) product_step(scores, left, right, step);
}

// Which of a lane's keys any row of the warp sees: the others' values may be NaN, and 0 * NaN is NaN.
struct Seen {
    u32 columns;  // a bit for each column of the lane's fragments

    __device__ __forceinline__ u32 whole(int c) const { return columns >> c & 1u ? 0xffffffffu : 0; }
    __device__ __forceinline__ u32 halves(int c) const { return (whole(c) & 0xffffu) | (whole(c + 1) & 0xffff0000u); }
};

template <class Tiles>
__device__ __forceinline__ Seen seen_by_warp(const Bits<Tiles>& visible) {
    static_assert(Tiles::kColumns <= 32, "a word");
    Seen seen = {0};
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r) seen.columns |= visible.row(r);
#pragma unroll
    for (u32 mask = 16; mask >= Tiles::kLanes; mask /= 2) seen.columns |= shuffle_xor(seen.columns, mask);
    return seen;
}

// Accumulators of rows 2 m, 2 m + 1 and columns [8 n, 8 n + 8) += a b.
template <class Tiles, int kWidth>
__device__ __forceinline__ void multiply(MmaResult<Tiles, kWidth>& to, int m, int n, const u32 (&a)[4], u32 b0, u32 b1) {
    auto &upper = to.at[2 * m][n], &lower = to.at[2 * m + 1][n];
    Tiles::Kind::multiply(upper.low, upper.high, lower.low, lower.high, a, b0, b1);
}

// result += weights v for elements of 16 bits, 16 keys at a time; of rows of v the columns from byte `first` on.
template <bool kMayHideKeys, int kPitch, class Tiles, int kWidth>
__device__ __forceinline__ void accumulate_halves(
    MmaResult<Tiles, kWidth>& result, const Fragment<Tiles>& weights, const u8* v, const Seen& seen, u32 first = 0) {
    const auto& w = weights.at;
    const u32 lane = thread_index_anew() % 32;
    const LaneRows<kPitch> right(v, lane % 16, lane / 16 * 16);
#pragma unroll
    for (int step = 0; step < Tiles::kWalk / 16; ++step) {
        const int c = 4 * step;  // the lane's columns of this step: c to c + 3
        u32 a[Tiles::kMTiles][4];
#pragma unroll
        for (int m = 0; m < Tiles::kMTiles; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n)
                a[m][n] = Tiles::Kind::pack(w[2 * m + n % 2][c + n / 2 * 2], w[2 * m + n % 2][c + n / 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < kWidth / 8; n += 2) {
            u32 b[4];
            load_matrices_transposed(b, right.at(16 * step, first + n * 16));
            if constexpr (kMayHideKeys)
                for (int i = 0; i < 4; ++i) b[i] &= seen.halves(c + i % 2 * 2);
#pragma unroll
            for (int m = 0; m < Tiles::kMTiles; ++m) {
                multiply(result, m, n, a[m], b[0], b[1]);
                multiply(result, m, n + 1, a[m], b[2], b[3]);
            }
        }
    }
}

// What offsets into rows of v are: ptxas finds registers enough for them unsigned in heads of 128 columns and more, signed
// in others, and spills the other way round (tests/test_nvrtc.py).
template <bool kUnsigned>
struct OffsetOf {
    using Type = int;
};
template <>
struct OffsetOf<true> {
    using Type = u32;
};
template <class Tiles>
using OffsetFor = typename OffsetOf<(Tiles::kHeadBytes >= 512)>::Type;

// Of the 8 keys from 8 j on, an operand takes those in the order in which the lane holds their weights: inner index t is
// key 2 t, and t + 4 is key 2 t + 1.
template <int kPitch, class Offset>
struct ValueWords {
    const u8 *even, *odd;  // the lane's rows, and by how they swizzle
    Offset even_swizzle, odd_swizzle, first;

    __device__ __forceinline__ ValueWords(const u8* v, int lane, u32 first_byte)
        : even(v + lane % 4 * 2 * kPitch + lane / 4 * 4 % 16), odd(even + kPitch),
          even_swizzle(lane / 16 * 16 ^ swizzle_of<kPitch>(lane % 4 * 2)),
          odd_swizzle(lane / 16 * 16 ^ swizzle_of<kPitch>(lane % 4 * 2 + 1)), first(first_byte) {}

    // Columns [8 n, 8 n + 8) from the first on.
    __device__ __forceinline__ void load(u32 (&b)[2], int j, int n) const {
        const Offset byte = first + 32 * n, rest = 8 * j * kPitch + byte / 128 * 128;
        b[0] = *reinterpret_cast<const u32*>(even + rest + (even_swizzle ^ byte % 128));
        b[1] = *reinterpret_cast<const u32*>(odd + rest + (odd_swizzle ^ byte % 128));
    }
};

// result += weights v for elements of 32 bits, 8 keys at a time; of rows of v the columns from byte `first` on.
template <bool kMayHideKeys, int kPitch, class Tiles, int kWidth>
__device__ __forceinline__ void accumulate_words(
    MmaResult<Tiles, kWidth>& result, const Fragment<Tiles>& weights, const u8* v, const Seen& seen, u32 first = 0) {
    const auto& w = weights.at;
    const ValueWords<kPitch, OffsetFor<Tiles>> right(v, thread_index_anew() % 32, first);
#pragma unroll
    for (int j = 0; j < Tiles::kWalk / 8; ++j) {
        u32 a[Tiles::kMTiles][4];
#pragma unroll
        for (int m = 0; m < Tiles::kMTiles; ++m)
#pragma unroll
            for (int n = 0; n < 4; ++n) a[m][n] = Tiles::Kind::rounded(bits_of_float(w[2 * m + n % 2][2 * j + n / 2]));
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
            u32 b[2];
            right.load(b, j, n);
            if constexpr (kMayHideKeys) b[0] &= seen.whole(2 * j), b[1] &= seen.whole(2 * j + 1);
#pragma unroll
            for (int m = 0; m < Tiles::kMTiles; ++m) multiply(result, m, n, a[m], b[0], b[1]);
        }
    }
}
