// s = softcap * tanh(scale * (q . k) / softcap), in place of Scale. Its derivative is kept for the gradient of the same tile.
#pragma once

#include <score/hooks.cuh>

template <class Tiles>
struct Softcap : Hook {
    using Acc = typename Tiles::Acc;
    Acc inner, outer, scale;
    Fragment<Tiles> slope;

    __device__ Softcap(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence),
          inner(static_cast<Acc>(Tiles::scale(params) / params.softcap)),
          outer(static_cast<Acc>(params.softcap * kLog2E)),
          scale(static_cast<Acc>(Tiles::scale(params))) {}

    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ void scores(Fragment& fragment, Bits&, const Place&, Acc& factor) {
        const Acc now = Tiles::kFolds ? Acc{1} : outer;
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c) {
                const Acc t = Tiles::tanh(fragment.at[r][c] * inner);
                fragment.at[r][c] = t * now;
                slope.at[r][c] = (Tiles::kLeavesScale ? Acc{1} : scale) * (1 - t * t);
            }
        if constexpr (Tiles::kFolds) factor = outer;
    }

    template <class Fragment>
    __device__ __forceinline__ void gradient(Fragment& fragment) const {
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c)
                // A hidden score has gradient 0, whatever its slope: a hidden key may be NaN.
                fragment.at[r][c] = fragment.at[r][c] == 0 ? 0 : fragment.at[r][c] * slope.at[r][c];
    }
};
