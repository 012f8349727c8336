// Online softmax (Milakov and Gimelshein 2018; Dao 2023), in units of log2: p = exp2(s - reference).
#pragma once

#include <tile/fma_tile.cuh>
#include <tile/row_lanes.cuh>
#include <tile/two_floats.cuh>

// Running maximum and sum of a thread's rows, the same in all lanes that share them.
template <class Tiles>
struct Softmax {
    using Acc = typename Tiles::Acc;
    Acc top[Tiles::kRows];
    CompensatedSum<Acc> sum[Tiles::kRows];

    __device__ Softmax() {
        for (int r = 0; r < Tiles::kRows; ++r) top[r] = -infinity<Acc>(), sum[r] = {};
    }

    // Turn scores into weights relative to the new maximum; `rescale` is what earlier sums are to be multiplied by.
    template <bool kMasked>
    __device__ __forceinline__ void update(Fragment<Tiles>& scores, const Bits<Tiles>& visible, Acc (&rescale)[Tiles::kRows]) {
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            Acc largest = top[r];
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c)
                if (!kMasked || visible(r, c)) largest = larger(largest, scores.at[r][c]);
            largest = row_max<Tiles>(largest);
            const Acc reference = finite(largest);
            rescale[r] = power_of_two(top[r] - reference);
            top[r] = largest;
            Acc part = 0;
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c) {
                const Acc weight = power_of_two(scores.at[r][c] - reference);
                scores.at[r][c] = !kMasked || visible(r, c) ? weight : 0;
                part += scores.at[r][c];
            }
            sum[r].multiply(rescale[r]);
            sum[r].add(row_sum<Tiles>(part));
        }
    }

    // A logit that joins row r's sum and has no value; returns what the row's result is to be multiplied by.
    __device__ __forceinline__ Acc join(int r, Acc logit) {
        const Acc largest = larger(top[r], logit);
        const Acc reference = finite(largest);
        const Acc rescale = power_of_two(top[r] - reference);
        sum[r].multiply(rescale);
        sum[r].add(power_of_two(logit - reference));
        top[r] = largest;
        return rescale;
    }

    // Natural logarithm of the row's sum, rounded once: rounding lse is an error of all of P in the backward.
    __device__ __forceinline__ Acc lse(int r) const { return log_of_sum(top[r], sum[r].value()); }

    // A row without a score has maximum -inf, and -inf minus itself would be NaN.
    __device__ static __forceinline__ Acc finite(Acc value) { return value == -infinity<Acc>() ? 0 : value; }
};
