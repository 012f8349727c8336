// Causal, window and lengths in one: owner row o sees the walked positions [o + low, o + high) of [0, length).
#pragma once

#include <schedule/sequence.cuh>

constexpr int kSegment = 16;  // positions that a schedule keeps together, and coordinates at multiples of it

// Walked positions [begin, end).
struct Span {
    i32 begin, end;

    __device__ bool has(i32 walked) const {
        return static_cast<u32>(walked - begin) < static_cast<u32>(end - begin);
    }

    // The 16 neighbours from `start` on, a bit each.
    __device__ u32 segment(i32 start) const {
        const i32 first = min(max(begin - start, 0), kSegment), last = min(max(end - start, 0), kSegment);
        return (1u << last) - (1u << first);
    }
};

struct Band {
    i32 low, high;
    i32 length;        // walked positions there are
    i32 owner_length;  // owner rows there are

    __device__ bool visible(i32 owner, i32 walked) const {
        return walked >= owner + low && walked < owner + high && walked < length && owner < owner_length;
    }

    // All that an owner row sees.
    __device__ Span span(i32 owner) const {
        if (owner >= owner_length) return {0, 0};
        const i32 begin = max(owner + low, 0), end = min(owner + high, length);
        return {begin, max(begin, end)};
    }

    // Owner rows that see anything: [1 - high, length - low) of those that there are.
    __device__ Span owners() const {
        const i32 begin = clamp(1 - static_cast<i64>(high), 0, owner_length);
        return {begin, clamp(static_cast<i64>(length) - low, begin, owner_length)};
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

// What a schedule knows from its start on: in registers, or, where a kernel has none to spare, in shared memory. There it
// takes a barrier behind the constructor, and one before it where shared memory may be in use.
struct Bounds {
    Band band;
    Reach reach;
};

template <bool kInShared>
struct KeptBounds {
    struct Shared {};
    Bounds own;

    __device__ KeptBounds(const Bounds& bounds, Shared&) : own(bounds) {}
    __device__ const Bounds& operator*() const { return own; }
};

template <>
struct KeptBounds<true> {
    struct Shared {
        Bounds bounds;
    };
    const Shared& shared;

    __device__ KeptBounds(const Bounds& bounds, Shared& to) : shared(to) {
        if (thread_index() == 0) to.bounds = bounds;
    }
    __device__ const Bounds& operator*() const { return shared.bounds; }
};

// The computed schedule: every tile that the band reaches, in order. Tiles are kWidth wide and start at its multiples.
template <int kWidth, bool kInShared = false>
class BandSchedule {
    using Kept = KeptBounds<kInShared>;

public:
    struct Tile {
        static constexpr bool kRun = true;  // positions are neighbours
        i32 first;

        __device__ i32 at(int n) const { return first + n; }
    };
    using Shared = typename Kept::Shared;
    using Scheduler = BandScheduler;

    __device__ BandSchedule(
        const BlockLists&, const Work&, i32, i32, const Band& band, i32 first_row, int rows, Shared& shared)
        : BandSchedule({band, Reach(band, first_row, rows)}, shared) {}

    // Whether a tile tells the next one.
    static constexpr bool kComputed = true;
    __device__ bool step(const Tile& tile, Tile& next) const {
        next.first = tile.first + kWidth;
        return next.first < reach().end;
    }

    // `ahead` may be called while the tile before is in use; a barrier stands between it and the use of the new one.
    __device__ bool ahead(Tile& tile) { return next(tile); }

    __device__ bool next(Tile& tile) {
        if (next_ >= reach().end) return false;
        tile.first = next_;
        next_ += kWidth;
        return true;
    }

    // The tile at `first`, a multiple of kWidth; false where nothing in it is visited.
    __device__ bool fetch(Tile& tile, i32 first) {
        tile.first = first;
        return first < reach().end && first + kWidth > reach().begin;
    }

    // Whether some of the owner rows do not see all of it.
    __device__ bool partial(const Tile& tile) const {
        return tile.first < reach().inner_begin || tile.first + kWidth > reach().inner_end;
    }
    __device__ bool visible(const Tile& tile, i32 owner, int n) const { return band().visible(owner, tile.at(n)); }

    // Positions beyond these are hidden from every owner row. Those between are all seen by some, unless kPatterns.
    static constexpr bool kPatterns = false;
    __device__ Span reached() const { return {reach().begin, reach().end}; }

    // What is visible of a tile's segment s, by `span` and besides; a bit for each position.
    __device__ Span span(i32 owner) const { return band().span(owner); }
    __device__ u32 visible_segment(const Tile& tile, i32, const Span& span, int s) const {
        return span.segment(tile.first + s * kSegment);
    }

private:
    __device__ BandSchedule(const Bounds& bounds, Shared& shared)
        : kept_(bounds, shared), next_(begins(bounds.reach)) {}

    // Of an empty reach no tile is visited, wherever it lies.
    __device__ static i32 begins(const Reach& reach) {
        return reach.begin < reach.end ? reach.begin / kWidth * kWidth : reach.end;
    }

    __device__ const Band& band() const { return (*kept_).band; }
    __device__ const Reach& reach() const { return (*kept_).reach; }

    Kept kept_;
    i32 next_;
};
