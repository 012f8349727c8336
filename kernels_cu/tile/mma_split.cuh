// Products of float32 by tensor cores: x = high + low, both TF32, and x y = high high + high low + low high (Ootomo and
// Yokota 2022, "Recovering single precision accuracy from Tensor Cores"). Tensor cores cut their sums off, always towards
// zero: each sums one step, and steps are added by FADD, which rounds.
#pragma once

#include <tile/mma_product.cuh>

// Operands of a step, their parts apart as mma takes them.
template <int kCount>
struct Split {
    u32 high[kCount], low[kCount];

    __device__ __forceinline__ void set(const u32 (&bits)[kCount]) {
#pragma unroll
        for (int n = 0; n < kCount; ++n) {
            high[n] = SplitTF32::rounded(bits[n]) & 0xffffe000u;
            low[n] = bits_of_float(float_of_bits(bits[n]) - float_of_bits(high[n])) + 0x1000u;
        }
    }
};

struct StepSum {
    float at[4];

    __device__ __forceinline__ void multiply(const u32 (&a)[4], u32 b0, u32 b1) {
        SplitTF32::multiply(at[0], at[1], at[2], at[3], a, b0, b1);
    }
};

// What small products add: nothing where an operand is infinite, and they are inf - inf.
__device__ __forceinline__ float finite_or_zero(float small) { return fabsf(small) < infinity<float>() ? small : 0; }

// scores = owner walked^T. Where kTransposed the owner is what walks elsewhere, and the scores are those to the last bit:
// small products are added in the same order.
template <bool kTransposed, int kBytes, int kPitch, class Tiles>
__device__ __forceinline__ void product_split(Fragment<Tiles>& scores, const u8* owner, const u8* walked) {
    Fragment<Tiles> small;
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) scores.at[r][c] = small.at[r][c] = 0;
    const auto left = left_rows<Tiles, kPitch>(owner);
    const auto right = right_rows<kPitch>(walked);
#pragma unroll 2
    for (int step = 0; step < kBytes / kStepBytes; ++step) {
        Split<4> a[Tiles::kMTiles];
        u32 bits[4];
#pragma unroll
        for (int m = 0; m < Tiles::kMTiles; ++m) {
            load_matrices(bits, left.at(16 * m, step * kStepBytes));
            a[m].set(bits);
        }
#pragma unroll
        for (int n = 0; n < Tiles::kWalk / 8; n += 2) {
            Split<4> b;
            load_matrices(bits, right.at(8 * n, step * kStepBytes));
            b.set(bits);
#pragma unroll
            for (int m = 0; m < Tiles::kMTiles; ++m)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    if (!kTransposed) multiply(small, m, n + half, a[m].low, b.high[2 * half], b.high[2 * half + 1]);
                    multiply(small, m, n + half, a[m].high, b.low[2 * half], b.low[2 * half + 1]);
                    if (kTransposed) multiply(small, m, n + half, a[m].low, b.high[2 * half], b.high[2 * half + 1]);
                    StepSum sum = {};
                    sum.multiply(a[m].high, b.high[2 * half], b.high[2 * half + 1]);
#pragma unroll
                    for (int i = 0; i < 4; ++i) scores.at[2 * m + i / 2][2 * (n + half) + i % 2] += sum.at[i];
                }
        }
    }
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) scores.at[r][c] += finite_or_zero(small.at[r][c]);
}

// result += weights v, the tile's sum from zero; of rows of v the columns from byte `first` on.
template <bool kMayHideKeys, int kPitch, class Tiles, int kWidth>
__device__ __forceinline__ void accumulate_split(
    MmaResult<Tiles, kWidth>& result, const Fragment<Tiles>& weights, const u8* v, const Seen& seen, u32 first = 0) {
    constexpr int kSteps = Tiles::kWalk / 8;
    const ValueWords<kPitch, OffsetFor<Tiles>> right(v, thread_index_anew() % 32, first);
#pragma unroll
    for (int m = 0; m < Tiles::kMTiles; ++m) {
        Split<4> a[kSteps];
#pragma unroll
        for (int j = 0; j < kSteps; ++j) {
            u32 bits[4];
#pragma unroll
            for (int n = 0; n < 4; ++n) bits[n] = bits_of_float(weights.at[2 * m + n % 2][2 * j + n / 2]);
            a[j].set(bits);
        }
#pragma unroll
        for (int n = 0; n < kWidth / 8; ++n) {
            StepSum high_low = {}, low_high = {};
            float part[4] = {};
#pragma unroll
            for (int j = 0; j < kSteps; ++j) {
                u32 bits[2];
                right.load(bits, j, n);
                if constexpr (kMayHideKeys) bits[0] &= seen.whole(2 * j), bits[1] &= seen.whole(2 * j + 1);
                Split<2> b;
                b.set(bits);
                StepSum sum = {};
                sum.multiply(a[j].high, b.high[0], b.high[1]);
                low_high.multiply(a[j].low, b.high[0], b.high[1]);
                high_low.multiply(a[j].high, b.low[0], b.low[1]);
#pragma unroll
                for (int i = 0; i < 4; ++i) part[i] += sum.at[i];
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) part[i] += finite_or_zero(low_high.at[i] + high_low.at[i]);
            result.at[2 * m][n].add(part[0], part[1]);
            result.at[2 * m + 1][n].add(part[2], part[3]);
        }
    }
}

// scores = owner walked^T, in whatever way the elements are multiplied.
template <bool kTransposed, int kBytes, int kPitch, class Tiles>
__device__ __forceinline__ void tile_product(Fragment<Tiles>& scores, const u8* owner, const u8* walked) {
    if constexpr (Tiles::Kind::kSplit) product_split<kTransposed, kBytes, kPitch>(scores, owner, walked);
    else product<kBytes, kPitch>(scores, owner, walked);
}

// result += weights rows, in the same way.
template <bool kMayHideKeys, int kPitch, class Tiles, int kWidth>
__device__ __forceinline__ void add_product(
    MmaResult<Tiles, kWidth>& result, const Fragment<Tiles>& weights, const u8* rows, const Seen& seen, u32 first = 0) {
    if constexpr (Tiles::Kind::kSplit) accumulate_split<kMayHideKeys, kPitch>(result, weights, rows, seen, first);
    else if constexpr (Tiles::Kind::kItem == 2) accumulate_halves<kMayHideKeys, kPitch>(result, weights, rows, seen, first);
    else accumulate_words<kMayHideKeys, kPitch>(result, weights, rows, seen, first);
}
