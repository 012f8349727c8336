// s = scale * (q . k)
#pragma once

#include <score/hooks.cuh>

template <class Tiles>
struct Scale : Hook {
    using Acc = typename Tiles::Acc;
    // Their sum is the factor: rounding it would be an error that all scores share. Both have its sign, so that infinite
    // products stay infinite. Where it is folded into the exponent, products of few bits are no more precise than one.
    static constexpr double kLeft = Tiles::kFolds ? 0 : sizeof(Acc) == 4 ? 1.2e-7 : 4e-16;
    Acc to_log2, to_log2_low;
    Acc scale;

    __device__ Scale(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence),
          to_log2(static_cast<Acc>(Tiles::scale(params) * kLog2E * (1 - kLeft))),
          to_log2_low(Tiles::kFolds ? 0 : static_cast<Acc>(Tiles::scale(params) * kLog2E - to_log2)),
          scale(static_cast<Acc>(Tiles::scale(params))) {}

    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ void scores(Fragment& fragment, Bits&, const Place&, Acc& factor) {
        if constexpr (Tiles::kFolds) {
            factor = to_log2;
        } else {
            for (auto& row : fragment.at)
                for (auto& score : row) score = multiply_add(score, to_log2, score * to_log2_low);
        }
    }

    template <class Fragment>
    __device__ __forceinline__ void gradient(Fragment& fragment) const {
        if constexpr (!Tiles::kLeavesScale)
            for (auto& row : fragment.at)
                for (auto& gradient : row) gradient *= scale;
    }
};
