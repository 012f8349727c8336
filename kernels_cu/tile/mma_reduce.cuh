// dq where keys own the tiles: the block's dS through shared memory, times its keys, added to the sums of all blocks.
#pragma once

#include <ptx/reduce.cuh>
#include <tile/mma_gradient.cuh>

// How the warps of a block share the product of a tile: each unit is some rows of queries and some columns.
template <class Tiles>
class QueryUnits {
    static constexpr int kMostSums = 32;  // of a thread, beside dk and dv
    struct Cut {
        int row_tiles, columns;
    };
    // As many rows at once as go, since all of them share what is read of the keys, but with work for every warp.
    __device__ static constexpr Cut cut() {
        for (int row_tiles = 2; row_tiles >= 1; --row_tiles)
            for (int columns = 64; columns >= 16; columns -= 16)
                if (Tiles::kWalk % (16 * row_tiles) == 0 && Tiles::kHeadChunk % columns == 0 &&
                    row_tiles * columns / 2 <= kMostSums && units(row_tiles, columns) % Tiles::kWarps == 0)
                    return {row_tiles, columns};
        return {1, Tiles::kHeadChunk % 32 == 0 ? 32 : 16};
    }
    __device__ static constexpr int units(int row_tiles, int columns) {
        return Tiles::kWalk / (16 * row_tiles) * (Tiles::kHeadChunk / columns);
    }

public:
    static constexpr int kRowTiles = cut().row_tiles, kColumns = cut().columns;
    static constexpr int kRowGroups = Tiles::kWalk / (16 * kRowTiles);
    static constexpr int kUnits = units(kRowTiles, kColumns);
};

// dS as it is shared: (keys, queries), rounded, so that ldmatrix.trans gives left operands.
template <class Tiles>
struct SharedGradients {
    static constexpr int kPitch = pitch_of(Tiles::kWalk * 2);
    u8 at[Tiles::kOwner * kPitch];
    u16 seen[Tiles::kOwner];  // all bits of a key that a query of the tile sees

    // `rows` has a bit for each of the lane's keys that it knows to be seen.
    template <bool kMayHide>
    __device__ __forceinline__ void put(const Fragment<Tiles>& gradients, u32 rows) {
        static_assert(Tiles::Kind::kItem == 2, "pairs of queries are words");
        const u32 thread = thread_index_anew();
        if constexpr (kMayHide)
            for (u32 mask = Tiles::kLanes / 2; mask > 0; mask /= 2) rows |= shuffle_xor(rows, mask);
        const u32 own = Tiles::local_row(0, thread);
        const LaneRows<kPitch> lane_rows(at, own, thread % Tiles::kLanes * 4);
#pragma unroll
        for (int r = 0; r < Tiles::kRows; ++r) {
#pragma unroll
            for (int n = 0; n < Tiles::kColumns / 2; ++n)
                *reinterpret_cast<u32*>(lane_rows.permuted(8 * r, 16 * n)) =
                    Tiles::Kind::pack(gradients.at[r][2 * n], gradients.at[r][2 * n + 1]);
            if (kMayHide && thread % Tiles::kLanes == 0) seen[own + 8 * r] = rows >> r & 1u ? 0xffff : 0;
        }
    }
};

// parts += dS k for the queries of a tile, but for segments from `end` on, which no key of the tile sees. `first_byte` is
// where the chunk's columns of k start. Keys that no query of the tile sees take no part: they may be NaN.
template <bool kMayHide, class Tiles, class Tile>
__device__ __forceinline__ void add_queries(const Segments& parts, const SharedGradients<Tiles>& gradients, const u8* k,
                                            const Tile& tile, i32 end, u32 first_byte) {
    using Units = QueryUnits<Tiles>;
    constexpr int kSums = Units::kColumns / 8;
    const u32 thread = thread_index_anew(), lane = thread % 32;
    const LaneRows<SharedGradients<Tiles>::kPitch> left(gradients.at, lane / 16 * 8 + lane % 8, lane / 8 % 2 * 16);
    const LaneRows<Tiles::kHeadPitch> right(k, lane % 16, lane / 16 * 16);
    warp_sync();  // lanes that took branches of their own, to copy, are together again
#pragma unroll 1
    for (int unit = thread / 32; unit < Units::kUnits; unit += Tiles::kWarps) {
        const int first_row = unit % Units::kRowGroups * (16 * Units::kRowTiles);
        const u32 byte = first_byte + unit / Units::kRowGroups * (Units::kColumns * Tiles::Kind::kItem);
        float sums[Units::kRowTiles][kSums][4] = {};
#pragma unroll
        for (int step = 0; step < Tiles::kOwner / 16; ++step) {
            u32 a[Units::kRowTiles][4];
#pragma unroll
            for (int m = 0; m < Units::kRowTiles; ++m)
                load_matrices_transposed(a[m], left.at(16 * step, (first_row + 16 * m) * 2));
            u32 seen[2] = {0xffffffffu, 0xffffffffu};
            if constexpr (kMayHide)
#pragma unroll
                for (int i = 0; i < 2; ++i)
                    seen[i] = *reinterpret_cast<const u32*>(&gradients.seen[16 * step + 8 * i + lane % 4 * 2]);
#pragma unroll
            for (int n = 0; n < kSums; n += 2) {
                u32 b[4];
                load_matrices_transposed(b, right.at(16 * step, byte + n * 16));
                if constexpr (kMayHide)
                    for (int i = 0; i < 4; ++i) b[i] &= seen[i % 2];
#pragma unroll
                for (int m = 0; m < Units::kRowTiles; ++m)
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        float(&d)[4] = sums[m][n + half];
                        Tiles::Kind::multiply(d[0], d[1], d[2], d[3], a[m], b[2 * half], b[2 * half + 1]);
                    }
            }
        }
#pragma unroll
        for (int m = 0; m < Units::kRowTiles; ++m) {
            const i32 row = tile.at(first_row + 16 * m);
            if (row >= end) continue;
            float* own = reinterpret_cast<float*>(parts.at(row)) + byte / (8 * Tiles::Kind::kItem) * kQuads;
#pragma unroll
            for (int n = 0; n < kSums; ++n) add_quads(own + n * kQuads, lane, sums[m][n]);
        }
    }
}
