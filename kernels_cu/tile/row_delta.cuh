// delta of a query row: sum(dout * out) - dlse.
#pragma once

#include <ptx/shuffle.cuh>
#include <schedule/work.cuh>
#include <tile/element.cuh>
#include <tile/sum.cuh>

constexpr int kWarp = 32;

// A lane's share of dout * out, element by element. With all digits: where a row sees few keys dP - delta cancels, and
// delta's error is all that is left.
template <class Acc>
__device__ inline CompensatedSum<Acc> dot_share(const AttentionParams& params, const u8* out, const u8* dout, u32 lane) {
    CompensatedSum<Acc> sum = {};
    for (i32 column = lane; column < params.v_dim; column += kWarp)
        sum.add_product(load<Acc>(params.out, out + column * params.out.column),
                        load<Acc>(params.dout, dout + column * params.dout.column));
    return sum;
}

// Eight 16-bit elements of a row.
__device__ inline Piece load_halves(const Operand& operand, const u8* row, i32 column, i32 columns, bool pieces) {
    if (pieces) return *reinterpret_cast<const Piece*>(row + column * 2);
    Piece result = {};
#pragma unroll  // as a loop with an end of its own it spilled
    for (int n = 0; n < kPiece / 2; ++n)
        if (column + n < columns)
            result.words[n / 2] |= static_cast<u32>(read<u16>(row + (column + n) * operand.column, operand.unaligned)) << (16 * (n % 2));
    return result;
}

// The same of 16-bit elements, whose products are exact in float32; wherever they lie, the same bits.
__device__ inline float dot_share_halves(const AttentionParams& params, const u8* out, const u8* dout, u32 lane) {
    constexpr int kEach = kPiece / 2;
    const bool out_pieces = in_pieces<2>(params.out, out, params.v_dim);
    const bool dout_pieces = in_pieces<2>(params.dout, dout, params.v_dim);
    float sum = 0;
    for (i32 column = lane * kEach; column < params.v_dim; column += kWarp * kEach) {
        const Piece x = load_halves(params.out, out, column, params.v_dim, out_pieces);
        const Piece y = load_halves(params.dout, dout, column, params.v_dim, dout_pieces);
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const u16 a = static_cast<u16>(x.words[n / 2] >> (n % 2 * 16)), b = static_cast<u16>(y.words[n / 2] >> (n % 2 * 16));
            const bool f16 = params.out.dtype == kFloat16;
            sum = multiply_add(f16 ? from_f16(a) : from_bf16(a), f16 ? from_f16(b) : from_bf16(b), sum);
        }
    }
    return sum;
}

__device__ inline CompensatedSum<float> shuffled(const CompensatedSum<float>& own, u32 mask) {
    return {shuffle_xor(own.sum, mask), shuffle_xor(own.lost, mask)};
}
__device__ inline CompensatedSum<double> shuffled(const CompensatedSum<double>& own, u32 mask) {
    return {shuffle_xor(own.sum, mask)};
}

// One row by one warp; `row` counts from the first of the head.
template <class Acc>
__device__ inline Acc row_delta(const AttentionParams& params, const Work& work, i64 row) {
    const u8* out = base(params.out, work, work.head) + row * params.out.row;
    const u8* dout = base(params.dout, work, work.head) + row * params.dout.row;
    const u32 lane = thread_index() % kWarp;
    const bool halves = (params.out.dtype == kFloat16 || params.out.dtype == kBFloat16) && params.out.dtype == params.dout.dtype;
    CompensatedSum<Acc> delta = {};
    if (halves) delta.sum = dot_share_halves(params, out, dout, lane);
    else delta = dot_share<Acc>(params, out, dout, lane);
    for (u32 mask = kWarp / 2; mask > 0; mask /= 2) delta.add(shuffled(delta, mask));
    if (given(params.dlse))
        delta.add(-load<Acc>(params.dlse, base(params.dlse, work, work.head) + row * params.dlse.row));
    return delta.value();
}
