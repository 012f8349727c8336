// Block lists: a tile is gathered from segments of 16 positions, each out of one listed block. Blocks smaller than a tile
// share one, larger ones are split.
#pragma once

#include <ptx/barrier.cuh>
#include <schedule/band.cuh>
#include <schedule/list_work.cuh>

// 16 neighbouring positions of the walked side.
struct Segment {
    i32 start;    // kFar where the tile has no more
    i32 pattern;  // kWhole, or the bit pattern of the block it lies in
    i32 within;   // its place in that block
};

constexpr i32 kWhole = -1;

// Tiles in use at once take turns with `kBuffers` places for their segments.
template <int kWidth, int kBuffers = 1, bool kInShared = false>
class ListSchedule {
    using Kept = KeptBounds<kInShared>;

public:
    static constexpr int kSegments = kWidth / kSegment;
    using Scheduler = ListScheduler;
    struct Shared : Kept::Shared {
        Segment segments[kBuffers][kSegments];
    };
    struct Tile {
        static constexpr bool kRun = false;
        const Segment* segments;
        bool crossed;  // by the band, by patterns, or by its own end

        __device__ i32 at(int n) const { return segments[n / kSegment].start + n % kSegment; }
    };

    // `head` counts query heads; lists may be shared by several of them. Rows [first_row, first_row + rows) lie in one
    // block row: of each head a tile has no more rows than a block.
    __device__ ListSchedule(
        const BlockLists& lists, const Work& work, i32 head, i32 q_heads, const Band& band, i32 first_row, int rows, Shared& shared)
        : lists_(lists), kept_({band, Reach(band, first_row, rows)}, shared), shared_(shared) {
        const i64 batch = lists.batch == 1 ? 0 : work.batch;
        row_ = (batch * lists.heads + head / (q_heads / lists.heads)) * lists.rows + first_row / lists.row_size;
        blocks_ = full_blocks();
        block_row_ = first_row - first_row % lists.row_size;
    }

    __device__ bool next(Tile& tile) {
        block_sync();  // segments of the tile before are still being read
        const bool any = ahead(tile);
        block_sync();
        return any;
    }

    static constexpr bool kComputed = false;

    // `ahead` may be called while kBuffers - 1 tiles are in use; a barrier stands between it and the use of the new one.
    __device__ bool ahead(Tile& tile) {
        buffer_ = (buffer_ + 1) % kBuffers;
        int count = 0;
        bool partial = false;
        Segment segment;
        while (count < kSegments && advance(segment)) {
            partial |= crosses(segment);
            put(count++, segment);
        }
        finish(tile, count, partial);
        return count > 0;
    }

    // The tile of the positions [first, first + kWidth); false where no block of it is listed.
    __device__ bool fetch(Tile& tile, i32 first) {
        block_sync();
        bool any = false, partial = false;
        for (int n = 0; n < kSegments; ++n) {
            Segment segment = find(first + n * kSegment);
            any |= segment.start != kFar;
            partial |= segment.start == kFar || crosses(segment);
            put(n, segment);
        }
        finish(tile, kSegments, partial);
        block_sync();
        return any;
    }

    // Whether some of the owner rows do not see all of it.
    __device__ bool partial(const Tile& tile) const { return tile.crossed; }
    __device__ bool visible(const Tile& tile, i32 owner, int n) const {
        const Segment& segment = tile.segments[n / kSegment];
        if (!band().visible(owner, segment.start + n % kSegment)) return false;
        if (segment.pattern == kWhole) return true;
        const i64 row = static_cast<i64>(segment.pattern) * lists_.row_size + (owner - block_row_);
        const i32 column = segment.within + n % kSegment;
        return lists_.bits[row * lists_.words + column / 32] >> (column % 32) & 1u;
    }

    // Positions beyond these are hidden from every owner row, and others may be.
    static constexpr bool kPatterns = true;
    __device__ Span reached() const { return {reach().begin, reach().end}; }

    // What is visible of a tile's segment s, by `span` and besides; a bit for each position.
    __device__ Span span(i32 owner) const { return band().span(owner); }
    __device__ u32 visible_segment(const Tile& tile, i32 owner, const Span& span, int s) const {
        const Segment& segment = tile.segments[s];
        const u32 band = span.segment(segment.start);
        if (segment.pattern == kWhole || band == 0) return band;
        const i64 row = static_cast<i64>(segment.pattern) * lists_.row_size + (owner - block_row_);
        return band & lists_.bits[row * lists_.words + segment.within / 32] >> (segment.within % 32);
    }

private:
    __device__ const Band& band() const { return (*kept_).band; }
    __device__ const Reach& reach() const { return (*kept_).reach; }

    // Listed blocks, ascending: what is left of one list of the row.
    struct Blocks {
        const i32* next;
        i32 left;
    };

    // Lists in device memory are whatever they are: their ends and patterns are clamped, and what their indices reach is
    // held to the band.
    __device__ Blocks full_blocks() const { return blocks(lists_.full_indptr, lists_.full_indices, lists_.capacity); }
    __device__ Blocks partial_blocks() const {
        return blocks(lists_.partial_indptr, lists_.partial_indices, lists_.partial_capacity);
    }
    __device__ Blocks blocks(const i64* indptr, const i32* indices, i64 capacity) const {
        const i64 begin = min(max(indptr[row_], 0ll), capacity), end = min(max(indptr[row_ + 1], begin), capacity);
        return {indices + begin, static_cast<i32>(end - begin)};
    }
    __device__ i32 pattern(const i32* block) const {
        const u32 id = lists_.bits_id[block - lists_.partial_indices];
        return static_cast<i32>(min(id, static_cast<u32>(lists_.patterns - 1)));
    }

    // The next segment that the band reaches: first those of FULL blocks, then those of PARTIAL ones.
    __device__ bool advance(Segment& segment) {
        for (;;) {
            if (blocks_.left == 0) {
                if (in_partial_) return false;
                in_partial_ = true;
                blocks_ = partial_blocks();
                continue;
            }
            segment.pattern = in_partial_ ? pattern(blocks_.next) : kWhole;
            segment.within = within_;
            segment.start = *blocks_.next * lists_.column_size + within_;
            if (segment.start >= reach().end) {  // blocks ascend: the rest lies further right
                blocks_.left = 0;
                within_ = 0;
                continue;
            }
            within_ += kSegment;
            if (within_ == lists_.column_size) {
                within_ = 0;
                ++blocks_.next;
                --blocks_.left;
            }
            if (segment.start + kSegment > reach().begin) return true;
        }
    }

    __device__ Segment find(i32 start) const {
        const i32 block = start / lists_.column_size;
        const i32 within = start - block * lists_.column_size;
        if (start < reach().end && start + kSegment > reach().begin) {
            if (search(full_blocks(), block)) return {start, kWhole, within};
            const i32* place = search(partial_blocks(), block);
            if (place) return {start, pattern(place), within};
        }
        return {kFar, kWhole, 0};
    }

    __device__ static const i32* search(Blocks blocks, i32 block) {
        while (blocks.left > 0) {
            const i32 half = blocks.left / 2;
            const i32* middle = blocks.next + half;
            if (*middle == block) return middle;
            if (*middle < block) blocks = {middle + 1, blocks.left - half - 1};
            else blocks.left = half;
        }
        return nullptr;
    }

    __device__ bool crosses(const Segment& segment) const {
        return segment.pattern != kWhole || segment.start < reach().inner_begin ||
               segment.start + kSegment > reach().inner_end;
    }

    __device__ void put(int n, const Segment& segment) {
        if (thread_index() == 0) shared_.segments[buffer_][n] = segment;
    }

    __device__ void finish(Tile& tile, int count, bool partial) {
        for (int n = count; n < kSegments; ++n) put(n, {kFar, kWhole, 0});
        tile.segments = shared_.segments[buffer_];
        tile.crossed = partial || count < kSegments;
    }

    const BlockLists& lists_;
    Kept kept_;
    Shared& shared_;
    i64 row_;  // of the lists
    Blocks blocks_;
    bool in_partial_ = false;
    int buffer_ = 0;
    i32 within_ = 0;
    i32 block_row_;  // the first owner row of the block row
};
