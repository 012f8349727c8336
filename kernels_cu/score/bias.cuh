// s += bias; -inf hides. A NaN does not hide: it is an error of the caller's, and shown.
#pragma once

#include <score/hooks.cuh>

template <class Tiles>
struct Bias : Hook {
    static constexpr bool kHides = true;
    using Acc = typename Tiles::Acc;
    const Operand& bias;
    const u8* start;

    __device__ Bias(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence), bias(params.bias), start(base(params.bias, work, head)) {}

    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ void scores(Fragment& fragment, Bits& visible, const Place& place) {
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c) {
                if (!visible(r, c)) continue;
                const u8* address = start + place.query(r, c) * bias.row + place.key(r, c) * bias.column;
                const Acc value = load<Acc>(bias, address);
                if (value == -infinity<Acc>()) visible.set(r, c, false);
                fragment.at[r][c] += value * static_cast<Acc>(kLog2E);
            }
    }
};
