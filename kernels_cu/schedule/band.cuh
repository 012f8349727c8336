// Causal, window and lengths in one: owner row o sees the walked positions [o + low, o + high) of [0, length).
#pragma once

#include <schedule/sequence.cuh>

struct Band {
    i32 low, high;
    i32 length;        // walked positions there are
    i32 owner_length;  // owner rows there are

    __device__ bool visible(i32 owner, i32 walked) const {
        return walked >= owner + low && walked < owner + high && walked < length && owner < owner_length;
    }
};

// A query that walks keys.
__device__ __forceinline__ Band query_band(const AttentionParams& params, const Sequence& sequence) {
    return {
        params.left == kFar ? -kFar : sequence.offset - params.left,
        params.right == kFar ? kFar : sequence.offset + params.right + 1,
        sequence.k.length,
        sequence.q.length,
    };
}

// A key that walks queries: i + low <= j < i + high, solved for i.
__device__ __forceinline__ Band key_band(const AttentionParams& params, const Sequence& sequence) {
    const Band band = query_band(params, sequence);
    return {1 - band.high, 1 - band.low, sequence.q.length, sequence.k.length};
}

// What the owner rows [first, last] reach: positions that any of them sees, and positions that all of them see.
struct Reach {
    i32 begin, end;
    i32 inner_begin, inner_end;

    __device__ Reach(const Band& band, i32 first, i32 rows) {
        const i32 last = (first + rows < band.owner_length ? first + rows : band.owner_length) - 1;
        begin = clamp(static_cast<i64>(first) + band.low, 0, band.length);
        inner_begin = clamp(static_cast<i64>(last) + band.low, 0, band.length);
        inner_end = clamp(static_cast<i64>(first) + band.high, 0, band.length);
        end = last < first ? 0 : clamp(static_cast<i64>(last) + band.high, 0, band.length);
    }
};

// The computed schedule: every tile that the band reaches, in order. Tiles are kWidth wide and start at its multiples.
template <int kWidth>
class BandSchedule {
public:
    struct Tile {
        i32 first;
        bool partial;

        __device__ i32 at(int n) const { return first + n; }
    };
    struct Shared {};

    __device__ BandSchedule(
        const BlockLists&, const Work&, i32, i32, const Band& band, i32 first_row, int rows, Shared&)
        : band_(band), reach_(band, first_row, rows), next_(reach_.begin / kWidth * kWidth) {}

    __device__ bool next(Tile& tile) {
        if (next_ >= reach_.end) return false;
        set(tile, next_);
        next_ += kWidth;
        return true;
    }

    // The tile at `first`, a multiple of kWidth; false where nothing in it is visited.
    __device__ bool fetch(Tile& tile, i32 first) {
        set(tile, first);
        return first < reach_.end && first + kWidth > reach_.begin;
    }

    __device__ bool visible(const Tile& tile, i32 owner, int n) const { return band_.visible(owner, tile.at(n)); }

private:
    __device__ void set(Tile& tile, i32 first) const {
        tile.first = first;
        tile.partial = first < reach_.inner_begin || first + kWidth > reach_.inner_end;
    }

    Band band_;
    Reach reach_;
    i32 next_;
};
