// Gradients on fragments of tensor cores: P from what the forward knew of the row, dS = P * (dP - delta).
#pragma once

#include <tile/mma_split.cuh>
#include <tile/mma_terms.cuh>
#include <tile/mma_visibility.cuh>

// Tiles of the backward: of the results' columns a block computes a chunk, where they are too many for its registers.
template <class Kind, int kOwner, int kWalk, int kHeadDim, int kVDim, int kWarps, int kStages, int kHeadChunk_, int kVChunk_,
          int kHeads = 1>
struct MmaGradientTiles : MmaTiles<Kind, kOwner, kWalk, kHeadDim, kVDim, kWarps, kStages, kHeads> {
    static constexpr int kHeadChunk = kHeadChunk_;  // columns of dq or dk
    static constexpr int kVChunk = kVChunk_;        // columns of dv
    // Of unsigned rows the swizzle takes 13 instructions a tile less, but for dk and dv of D = 64 on Hopper ptxas then spills
    // a word.
    using OwnRow = i32;
    // Nothing here takes a maximum: the scale keeps its sign.
    __device__ static double scale(const AttentionParams& params) { return params.scale; }
    // Of a result in chunks, the byte of an operand's row that chunk `chunk` starts at.
    __device__ static __forceinline__ u32 head_byte(i32 chunk) {
        return kHeadChunk == kHeadDim ? 0 : chunk * (kHeadChunk * Kind::kItem);
    }
    __device__ static __forceinline__ u32 v_byte(i32 chunk) {
        return kVChunk == kVDim ? 0 : chunk * (kVChunk * Kind::kItem);
    }
    static_assert(kHeadChunk % 32 == 0 && kVChunk % 32 == 0, "half a row of banks, and whole steps");
};

// The two operands that come together: q and dout, or k and v. In global memory their row 0, or tiles in shared memory.
struct OperandPair {
    const u8 *a, *b;
};

// Bits of a tile's scores that follow from coordinates alone, found before the products: registers are free then.
template <class Tiles>
struct ScoreBits {
    Bits<Tiles> visible, kept;
};

// Products q k^T become P after dropout, not yet scaled up, products dout v^T become dS.
template <bool kMasked, class Tiles, class RowsTerms>
__device__ __forceinline__ void weigh(Fragment<Tiles>& weights, Fragment<Tiles>& gradients, float factor, float survivors,
                                      const ScoreBits<Tiles>& bits, const RowsTerms& terms) {
#pragma unroll
    for (int c = 0; c < Tiles::kColumns; c += 2) {
        const auto columns = terms.columns(c);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const auto& own = columns.at(r, i);
                float &weight = weights.at[r][c + i], &gradient = gradients.at[r][c + i];
                const bool hidden = kMasked && !bits.visible(r, c + i), kept = bits.kept(r, c + i);
                const float whole = own.weight(weight, factor);
                const float rest = kept ? multiply_add(gradient, survivors, -own.delta) : -own.delta;
                gradient = hidden ? 0 : whole * rest;
                weight = hidden || !kept ? 0 : whole;
            }
    }
}

// What one tile of scores goes through: P and dS of the pair of owner and walked rows that `place` stands for.
template <class Tiles, class Schedule, class Hooks, bool kTransposed>
struct ScoreGradients {
    using Tile = typename Schedule::Tile;
    // Whether a position that is copied may be hidden from all rows of a warp, and with it values that are NaN.
    static constexpr bool kMayHide = Hooks::kHides || Schedule::kPatterns;
    Fragment<Tiles> weights, gradients;
    Seen seen = {0xffffffffu};  // walked positions that any row of the warp sees
    u32 rows = 0xffffffffu;     // a bit for each of the lane's rows that sees any of its columns

    // `masked`: look at visibility even in a FULL tile.
    template <class RowsTerms>
    __device__ __forceinline__ ScoreGradients(const Schedule& schedule, Hooks& hooks, const Tile& tile, i32 first_row,
                                              bool masked, const OperandPair& owner, const OperandPair& walked,
                                              const RowsTerms& terms) {
        bool large = false;
        if constexpr (!Tiles::kPrecise) large = terms.any_large();  // behind the products it would spill
        const Place<Tiles, Tile, kTransposed> place = {first_row, tile};
        ScoreBits<Tiles> bits = {equal_bits<Tiles>(true), equal_bits<Tiles>(true)};
        masked |= Hooks::kHides || schedule.partial(tile);
        if (masked) bits.visible = visible_patches<Tiles>(schedule, tile, place);
        if constexpr (Hooks::kHides) hooks.hide(bits.visible, place);
        hooks.drop(bits.kept, place);
        warp_sync();  // lanes that took branches of their own are together again
        tile_product<kTransposed, Tiles::kHeadBytes, Tiles::kHeadPitch>(weights, owner.a, walked.a);
        tile_product<kTransposed, Tiles::kVBytes, Tiles::kVPitch>(gradients, owner.b, walked.b);
        const float factor = hooks.scores(weights, bits.visible, place);
        const float survivors = static_cast<float>(hooks.survivors());
        if (masked) weigh<true>(weights, gradients, factor, survivors, bits, terms);
        else weigh<false>(weights, gradients, factor, survivors, bits, terms);
        if constexpr (!Tiles::kPrecise)
            if (large) multiply_large(weights, gradients, terms);
        if constexpr (kMayHide) seen = seen_by_warp(bits.visible);
        rows = 0;
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) rows |= (bits.visible.row(r) != 0 ? 1u : 0) << r;
    }
};
