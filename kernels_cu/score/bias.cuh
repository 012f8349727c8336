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
    __device__ __forceinline__ void scores(Fragment& fragment, Bits& visible, const Place& place, Acc& factor) {
        const ScoreElements<Tiles, Place> elements{bias, start, place};
#pragma unroll
        for (int r = 0; r < Fragment::kRows; ++r) {
            Acc values[Fragment::kColumns];
            load_row(values, r, visible, elements);
#pragma unroll
            for (int c = 0; c < Fragment::kColumns; ++c) {
                if (values[c] == -infinity<Acc>()) visible.set(r, c, false);
                fragment.at[r][c] = multiply_add(fragment.at[r][c], factor, in_log2(values[c]));
            }
        }
        factor = 1;
    }

private:
    // The least finite biases, by which some hide, may not become -inf: a row of nothing else has equal weights.
    __device__ __forceinline__ static Acc in_log2(Acc value) {
        const Acc least = -most<Acc>() / static_cast<Acc>(kLog2E);
        return value < least ? -most<Acc>() : value * static_cast<Acc>(kLog2E);
    }

    // Loads of a row are in flight together. A fragment of tensor cores is too large for a branch by alignment at each score.
    template <int kColumns, class Bits, class Elements>
    __device__ __forceinline__ void load_row(
        Acc (&values)[kColumns], int r, const Bits& visible, const Elements& elements) const {
        const u8* row = elements.row(r);
        Raw<Acc> raw[kColumns] = {};
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
            const u8* address = elements.at(row, r, c);
            values[c] = 0;
            if (!visible(r, c)) continue;
            if constexpr (Tiles::kAlignedOperands) raw[c].read(bias, address);
            else values[c] = load<Acc>(bias, address);
        }
        if constexpr (Tiles::kAlignedOperands)
            for (int c = 0; c < kColumns; ++c) values[c] = raw[c].value(bias);
    }
};
