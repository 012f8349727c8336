// A bool for each score: true = attend.
#pragma once

#include <score/hooks.cuh>

template <class Tiles>
struct Mask : Hook {
    static constexpr bool kHides = true;
    const Operand& mask;
    const u8* start;

    __device__ Mask(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence), mask(params.mask), start(base(params.mask, work, head)) {}

    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ void scores(Fragment&, Bits& visible, const Place& place) {
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r)
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c)
                if (visible(r, c))
                    visible.set(r, c, start[place.query(r, c) * mask.row + place.key(r, c) * mask.column] != 0);
    }
};
