// s -= slope * |i + offset - j|
#pragma once

#include <score/hooks.cuh>

template <class Tiles>
struct Alibi : Hook {
    using Acc = typename Tiles::Acc;
    Acc slope;
    i32 offset;

    __device__ Alibi(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence),
          slope(static_cast<Acc>(load<double>(params.slopes, base(params.slopes, work, head)) * kLog2E)),
          offset(sequence.offset) {}

    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ void scores(Fragment& fragment, Bits&, const Place& place, Acc& factor) {
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c) {
                const i32 distance = place.query(r, c) + offset - place.key(r, c);
                const Acc penalty = slope * static_cast<Acc>(distance < 0 ? -distance : distance);
                fragment.at[r][c] = multiply_add(fragment.at[r][c], factor, -penalty);
            }
        factor = 1;
    }
};
