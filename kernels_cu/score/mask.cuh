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

    // Loads of a row are in flight together.
    template <class Bits, class Place>
    __device__ __forceinline__ void hide(Bits& visible, const Place& place) const {
        const ScoreElements<Tiles, Place> elements{mask, start, place};
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
            const u8* row = elements.row(r);
            u8 allowed[Tiles::kColumns] = {};
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c)
                if (visible(r, c)) allowed[c] = *elements.at(row, r, c);
#pragma unroll
            for (int c = 0; c < Tiles::kColumns; ++c)
                if (allowed[c] == 0) visible.set(r, c, false);
        }
    }
};
