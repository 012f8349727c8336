// A result tile from registers to memory: each warp through shared memory of its own, so that rows are written in pieces
// of 16 bytes where addresses allow, and element by element where not.
#pragma once

#include <ptx/barrier.cuh>
#include <tile/mma_copy.cuh>
#include <tile/mma_product.cuh>

// What is stored: this, or F16 and BF16.
struct FloatElement {
    static constexpr int kItem = 4;
};

// Bytes of a row of kWidth columns that are stored at a time: all passes are alike, and a row of the stage has kRoom bytes.
template <int kRoom, int kWidth, class Element>
__device__ constexpr int stage_bytes() {
    return kRoom < 128 || kWidth * Element::kItem % 128 != 0 ? 64 : 128;
}

// Where a byte of a row lies in the stage. Pairs of a lane are 4 or 8 bytes, and those that are written together, those of
// eight rows or of four, fall into different banks.
template <class Element, int kBytes>
__device__ __forceinline__ u8* staged(u8* stage, int row, int byte) {
    const int swizzle = Element::kItem == 2 ? swizzle_of<kBytes>(row) : (kBytes == 64 ? row / 2 % 2 : row % 4) * 32;
    return stage + row * kBytes + (byte ^ swizzle);
}

struct alignas(8) Pair {
    float at[2];
};

// Where and how far a warp's rows may be stored.
struct Target {
    const Operand& operand;
    u8* base;        // of coordinate (0, 0)
    i32 first_row;   // the warp's
    i32 allotted;    // rows there are
    i32 first;       // column of the tile
    i32 columns;     // there are
};

// 16 bytes of a row; element by element, as they lie in the stage, where they have to be.
template <class Element>
__device__ __forceinline__ void store_piece(const Target& target, const u8* staged, i32 row, i32 column, bool pieces) {
    constexpr int kElements = kPiece / Element::kItem;
    u8* to = target.base + row * target.operand.row + column * target.operand.column;
    if (pieces) {
        *reinterpret_cast<Piece*>(to) = *reinterpret_cast<const Piece*>(staged);
        return;
    }
#pragma unroll 1
    for (int n = 0; n < kElements && column + n < target.columns; ++n) {
        u8* element = to + n * target.operand.column;
        const u8* own = staged + n * Element::kItem;
        if constexpr (Element::kItem == 4) write(element, *reinterpret_cast<const u32*>(own), target.operand.unaligned);
        else write(element, *reinterpret_cast<const u16*>(own), target.operand.unaligned);
    }
}

// A result times `factor`, and zeros in owner rows from `length` on: they may be NaN. `first_row` is the tile's.
template <class Tiles, int kWidth>
__device__ __forceinline__ void finish(MmaResult<Tiles, kWidth>& result, float factor, i32 first_row, i32 length) {
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r) {
        const bool there = first_row + Tiles::local_row(r) < length;
#pragma unroll
        for (auto& own : result.at[r])
            own = {there ? own.low_value() * factor : 0, there ? own.high_value() * factor : 0};
    }
}

// `stage` is the warp's own, kRoom bytes for each of its rows.
template <int kRoom, class Element, class Tiles, int kColumns>
__device__ __forceinline__ void store_result(
    const MmaResult<Tiles, kColumns>& result, u8* stage, const Target& target) {
    constexpr int kBytes = stage_bytes<kRoom, kColumns, Element>();
    constexpr int kWidth = kBytes / Element::kItem, kPieces = kBytes / kPiece;
    const bool pieces = in_pieces<Element::kItem>(target.operand, target.base, target.columns);
#pragma unroll
    for (int first = 0; first < kColumns; first += kWidth) {
        if (target.first + first >= target.columns) return;
        warp_sync();  // the stage is being read
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
            for (int n = first / 8; n < (first + kWidth) / 8; ++n) {
                const float low = result.at[r][n].low_value(), high = result.at[r][n].high_value();
                const int row = Tiles::local_row(r) - Tiles::first_warp_row();
                u8* to = staged<Element, kBytes>(stage, row, (8 * n - first + 2 * Tiles::thread_lane()) * Element::kItem);
                if constexpr (Element::kItem == 4) *reinterpret_cast<Pair*>(to) = {low, high};
                else *reinterpret_cast<u32*>(to) = Element::pack(low, high);
            }
        warp_sync();
#pragma unroll 1
        for (int place = Tiles::lane(); place < 16 * Tiles::kMTiles * kPieces; place += 32) {
            const int r = place / kPieces, n = place % kPieces;
            const i32 row = target.first_row + r, column = target.first + first + n * (kPiece / Element::kItem);
            if (row < target.allotted && column < target.columns)
                store_piece<Element>(target, staged<Element, kBytes>(stage, r, n * kPiece), row, column, pieces);
        }
    }
}

// The same in the dtype of the target: that of q, k and v, or float32.
template <int kRoom, class Tiles, int kColumns>
__device__ __forceinline__ void store_any(const MmaResult<Tiles, kColumns>& result, u8* stage, const Target& target) {
    if constexpr (Tiles::Kind::kItem == 2)
        if (target.operand.dtype != kFloat32) return store_result<kRoom, typename Tiles::Kind>(result, stage, target);
    store_result<kRoom, FloatElement>(result, stage, target);
}
