// Online softmax on fragments of tensor cores, in units of log2: p = exp2(s - reference).
#pragma once

#include <ptx/approximate.cuh>
#include <ptx/multiply.cuh>
#include <ptx/vote.cuh>
#include <tile/mma_product.cuh>
#include <tile/row_lanes.cuh>
#include <tile/two_floats.cuh>

// Weights may grow to 2^kSlack before the reference follows the maximum: results are rarely rescaled (FlashAttention-4).
// Their relative precision does not depend on it, and 2^8 is far from float16's overflow.
constexpr float kSlack = 8;

template <class Tiles>
struct MmaSoftmax {
    using Acc = float;
    float reference[Tiles::kRows];  // -inf before the first visible score
    typename SumsFor<Tiles::kPrecise>::Sum sum[Tiles::kRows];  // of the lane's own columns

    __device__ MmaSoftmax() {
        for (int r = 0; r < Tiles::kRows; ++r) reference[r] = -infinity<float>(), sum[r] = {};
    }

    // Turn scores, still to be multiplied by `factor`, into weights; earlier results are rescaled where the reference moves.
    __device__ __forceinline__ void update(Fragment<Tiles>& scores, float factor, MmaResult<Tiles>& result) {
        float largest[Tiles::kRows];
        bool far[Tiles::kRows];
        bool grows = false, any_far = false;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            float top = -infinity<float>();
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) top = larger(top, scores.at[r][c]);
            largest[r] = row_max<Tiles>(top) * factor;
            grows |= grew(largest[r], r);
            far[r] = Tiles::Kind::kOverflows && fabsf(finite(largest[r])) > kFarScore;
            any_far |= far[r];
        }
        if (warp_any(grows || any_far)) {
            raise(largest, result);
            if (Tiles::Kind::kOverflows && warp_any(any_far)) center(scores, factor, far);
        }
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const float base = far[r] ? 0 : finite(reference[r]);
            float part = 0;
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) {
                scores.at[r][c] = Tiles::exp2(multiply_add(scores.at[r][c], factor, -base));
                part += scores.at[r][c];
            }
            sum[r].add(part);
        }
    }

    // Sums over all lanes, behind the last tile.
    __device__ __forceinline__ void gather() {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) sum[r] = {row_sum<Tiles>(sum[r].value())};
    }

    // A logit that joins row r's sum and has no value; returns what the row's result is to be multiplied by.
    __device__ __forceinline__ float join(int r, float logit) {
        const float largest = larger(reference[r], logit);
        const float rescale = power_of_two(reference[r] - finite(largest));
        sum[r].multiply(rescale);
        sum[r].add(power_of_two(logit - finite(largest)));
        reference[r] = largest;
        return rescale;
    }

    // Natural logarithm of the row's sum, rounded once where rounding it would be an error of all of P in the backward.
    __device__ __forceinline__ float lse(int r) const {
        if constexpr (Tiles::kPrecise) return log_of_sum(reference[r], sum[r].value());
        return (reference[r] + log2f(sum[r].value())) * static_cast<float>(kLn2);
    }

private:
    __device__ __forceinline__ void raise(const float (&largest)[Tiles::kRows], MmaResult<Tiles>& result) {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const bool grows = grew(largest[r], r);
            const float rescale = grows ? Tiles::exp2(reference[r] - largest[r]) : 1;
            reference[r] = grows ? largest[r] : reference[r];
            sum[r].multiply(rescale);
#pragma unroll
            for (auto& own : result.at[r]) own.multiply(rescale);
        }
    }

    // Exact where it matters: from 2^27 on the sum of reference and slack would be a tie.
    __device__ __forceinline__ bool grew(float largest, int r) const { return largest - reference[r] > kSlack; }

    // score * factor - reference of far rows, in units of scores. The largest becomes 0. By selection: lanes of a warp stay
    // together for the products, and a row's gradient does not depend on what rows its lane has beside it.
    __device__ __forceinline__ void center(Fragment<Tiles>& scores, float factor, const bool (&far)[Tiles::kRows]) const {
        const float back = reciprocal_approximate(factor);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const float base = finite(reference[r]);
#pragma unroll
            for (float& score : scores.at[r])
                score = far[r] ? (multiply_rounded(score, factor) - base) * back : score;
        }
    }

    // A row without a score has the reference -inf, and -inf minus itself would be NaN.
    __device__ static __forceinline__ float finite(float value) { return value == -infinity<float>() ? 0 : value; }
};
