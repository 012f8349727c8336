// What a query row brings to its gradients: written by bwd_rows_sm80.cu, in segments of 16 rows.
#pragma once

#include <ptx/vote.cuh>
#include <schedule/segments.cuh>
#include <tile/mma_copy.cuh>

// P = exp2(s - lse), in units of log2. Rounding lse is an error of all of P, which grows with it: of rows where it is large
// from zero lse is the softmax's reference, P and dS lack the factor 1 / sum, and `multiply_large` makes up for it.
template <bool kPrecise>
struct alignas(8) RowTerms {
    float lse;  // infinite where the row saw nothing
    float delta;

    __device__ __forceinline__ static RowTerms nothing() { return {infinity<float>(), 0}; }
    __device__ __forceinline__ float weight(float product, float factor) const {
        return exp2_approximate(multiply_add(product, factor, -lse));
    }
};

// In float32 every row's would be an error.
template <>
struct alignas(16) RowTerms<true> {
    float reference, inverse_sum;  // P = exp2(s - reference) * inverse_sum
    float delta;
    float unused;

    __device__ __forceinline__ static RowTerms nothing() { return {0, 0, 0, 0}; }
    __device__ __forceinline__ float weight(float product, float factor) const {
        return power_of_two(multiply_add(product, factor, -reference)) * inverse_sum;
    }
};

constexpr float kLarge = 512;  // up to there rounding lse changes P by at most 1.1e-5

constexpr float kMostOfSum = 64;  // more than log2 of the sum of any row's weights

struct alignas(16) LargeFactors {
    float of_row[kSegment];  // 0 where it is not large

    __device__ __forceinline__ static float or_one(float factor) { return factor == 0 ? 1 : factor; }
};

template <bool kPrecise>
struct SegmentTerms {
    RowTerms<false> rows[kSegment];
    LargeFactors large;
};
template <>
struct SegmentTerms<true> {
    RowTerms<true> rows[kSegment];
};

template <class Tiles>
using Terms = RowTerms<Tiles::kPrecise>;
template <class Tiles>
using SegmentOf = SegmentTerms<Tiles::kPrecise>;

// Terms of the lane's rows, where queries own the tile.
template <class Tiles>
struct OwnerTerms {
    Terms<Tiles> own[Tiles::kRows];

    // Of the tile's rows from `first` on.
    __device__ __forceinline__ void load(const Segments& from, i32 first, i32 length) {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const i32 row = first + Tiles::local_row(r);
            own[r] = row < length ? reinterpret_cast<const SegmentOf<Tiles>*>(from.at(row))->rows[row % kSegment]
                                  : Terms<Tiles>::nothing();
        }
    }
};

// The same for one tile of scores. Factors are read where a row may need one: the loop over tiles has no registers.
template <class Tiles>
struct OwnedTerms {
    const OwnerTerms<Tiles>& terms;
    const AttentionParams& params;
    const Work& work;
    i32 first_row;  // of the tile, in the sequence

    struct Columns {
        const OwnerTerms<Tiles>& terms;
        __device__ __forceinline__ const Terms<Tiles>& at(int r, int) const { return terms.own[r]; }
    };
    __device__ __forceinline__ Columns columns(int) const { return {terms}; }

    struct Factors {
        float of_row[Tiles::kRows];
        __device__ __forceinline__ const Factors& of(int) const { return *this; }
        __device__ __forceinline__ float factor(int r, int) const { return LargeFactors::or_one(of_row[r]); }
    };
    __device__ __forceinline__ Factors factors() const {
        const i32 head = Tiles::head(work);
        const Extent q = sequence(params, work).q;
        const Segments from = segments(params, params.row_terms, work, head, q);
        Factors result;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const i32 row = first_row + Tiles::local_row(r);
            result.of_row[r] = 0;
            if constexpr (!Tiles::kPrecise)
                if (row < q.length)
                    result.of_row[r] = reinterpret_cast<const SegmentOf<Tiles>*>(from.at(row))->large.of_row[row % kSegment];
        }
        return result;
    }

    // The reference of a large lse is less far from zero, by the sum's logarithm. A row too many is multiplied by 1.
    __device__ __forceinline__ bool any_large() const {
        bool any = false;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const float size = fabsf(terms.own[r].lse);  // infinite where the row saw nothing
            any |= size > kLarge - kMostOfSum && size < infinity<float>();
        }
        return warp_any(any);
    }
};

// Terms of the lane's columns, in shared memory, where queries walk. Two neighbours are read at once.
template <class Tiles>
struct WalkedTerms {
    const SegmentOf<Tiles>* walked;

    struct alignas(16) Columns {
        Terms<Tiles> two[2];
        __device__ __forceinline__ const Terms<Tiles>& at(int, int i) const { return two[i]; }
    };
    __device__ __forceinline__ Columns columns(int c) const {
        return *reinterpret_cast<const Columns*>(&walked[c / 4].rows[first_row(c)]);
    }

    struct alignas(8) Factors {
        float two[2];
        __device__ __forceinline__ float factor(int, int i) const { return LargeFactors::or_one(two[i]); }
    };
    __device__ __forceinline__ const WalkedTerms& factors() const { return *this; }
    __device__ __forceinline__ Factors of(int c) const {
        return *reinterpret_cast<const Factors*>(&walked[c / 4].large.of_row[first_row(c)]);
    }

    // Each lane looks at its share of the rows.
    __device__ __forceinline__ bool any_large() const {
        constexpr int kEach = Tiles::kWalk <= 32 ? 1 : Tiles::kWalk / 32, kLanesEach = kSegment / kEach;
        struct alignas(4 * kEach) Share {
            float of_row[kEach];
        };
        const u32 lane = thread_index_anew() % 32 % (Tiles::kWalk / kEach);
        const Share own = *reinterpret_cast<const Share*>(
            &walked[lane / kLanesEach].large.of_row[lane % kLanesEach * kEach]);
        bool any = false;
#pragma unroll
        for (int n = 0; n < kEach; ++n) any |= own.of_row[n] != 0;
        return warp_any(any);
    }

private:
    // The column's place in its segment; columns 4 n to 4 n + 3 of a fragment are one segment's.
    __device__ __forceinline__ static int first_row(int c) { return Tiles::local_column(c % 4); }
};

// Terms of a tile's queries to shared memory, asynchronously; zeros for segments from `end` on.
template <class Tiles, class Tile>
__device__ __forceinline__ void copy_terms(SegmentOf<Tiles>* to, const Segments& from, const Tile& tile, i32 end) {
    constexpr u32 kEach = sizeof(SegmentOf<Tiles>) / kPiece, kPieces = Tiles::kWalk / kSegment * kEach;
#pragma unroll
    for (u32 first = 0; first < kPieces; first += Tiles::kThreads) {
        const u32 piece = first + thread_index_anew();
        if (kPieces % Tiles::kThreads != 0 && piece >= kPieces) break;
        const i32 row = tile.at(piece / kEach * kSegment);
        copy_async_16(reinterpret_cast<u8*>(to) + piece * kPiece, from.at(row) + piece % kEach * kPiece,
                      row < end ? kPiece : 0);
    }
}

// For a tile with rows of a large lse, which are rare: a warp asks any_large() once.
template <class Tiles, class RowsTerms>
__device__ __forceinline__ void multiply_large(Fragment<Tiles>& weights, Fragment<Tiles>& gradients, const RowsTerms& terms) {
    const auto& factors = terms.factors();
#pragma unroll
    for (int c = 0; c < Tiles::kColumns; c += 2) {
        const auto& columns = factors.of(c);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                weights.at[r][c + i] *= columns.factor(r, i);
                gradients.at[r][c + i] *= columns.factor(r, i);
            }
    }
}
