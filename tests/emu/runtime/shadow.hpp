// The race detector's memory of accesses: exact happens-before for whole-warp synchronisation.
//
// An access leaves a stamp: time (32 bits), place in the binary (22), thread (10). Memory is cut into pages of 1024
// bytes; a page has a cell of stamps per granule of 4 bytes, and is refined to 2 or 1 when a smaller access comes, so
// that neighbours never look like a race. Time only grows: what an earlier block or launch left behind reads as "long
// ago" however it is laid out now, and nothing is ever cleared.
#pragma once

#include "fail.hpp"

namespace emu {

constexpr u32 page_shift = 10;
constexpr u32 coarse = 2;  // log2 of the largest granule

enum class Kind : u32 { read, write, atomic };

inline const char* name_of(Kind kind) {
    static const char* const names[] = {"read", "write", "atomic"};
    return names[static_cast<u32>(kind)];
}

// The stamp of an asynchronous copy that nobody has waited for: later than all, and ordered with nothing.
constexpr u64 under_way = u64{0xffffffff} << 32;

inline u32 time_of(u64 stamp) { return static_cast<u32>(stamp >> 32); }
inline u32 thread_of(u64 stamp) { return stamp & (most_threads - 1); }
inline u64 place_of(u64 stamp) { return stamp >> 10 & 0x3fffff; }

inline u64 stamp_here(u64 place) {
    return static_cast<u64>(current->warp->time) << 32 | (place < 1u << 22 ? place << 10 : 0) | current->index;
}

inline bool ordered(u64 stamp);

// The last accesses of one kind. Two of this block that nothing orders; blocks run one after the other, so that one
// more is enough to tell whether an earlier block of this launch was here. An access that comes before a kept one may
// go: whoever is not ordered with it is not ordered with the kept one either. Only a third thread's may be lost.
struct Recent {
    u64 last, previous, other_block;

    void add(u64 stamp) {
        if (time_of(last) < block_start) {
            if (time_of(last) >= launch_start) other_block = last;
            previous = 0;
        } else if (!ordered(last)) {
            previous = last;
        }
        last = stamp;
    }
};

struct Page {
    u64* cells;
    Recent* atomics;  // per 4 bytes; none until an atomic comes
    u32 shift;        // log2 of the granule
};

// Whether an access of this block comes before what the current thread does next.
inline bool ordered(u64 stamp) {
    return time_of(stamp) <= current->warp->known[thread_of(stamp) / warp_size] ||
           (thread_of(stamp) == current->index && stamp < under_way);
}

inline bool of_other_block(u64 stamp) { return time_of(stamp) >= launch_start && time_of(stamp) < block_start; }

static u32 block_at(u32 time) {
    u32 block = 0;
    for (const BlockStart& start : block_starts)
        if (start.time <= time) block = start.block;
    return block;
}

struct Access {
    u64 address;
    u64 place;
    u32 bytes;
    Kind kind;
};

static void append_address(u64 address, u32 bytes);

EMU_COLD [[noreturn]] static void race(const Access& access, Kind earlier, u64 stamp) {
    append("race: %s of ", name_of(access.kind));
    append_address(access.address, access.bytes);
    append(" by "), append_thread(current->index), append_place(access.place);
    append(stamp >= under_way ? " and an asynchronous copy under way, by " : " and an earlier %s by ", name_of(earlier));
    append_thread(thread_of(stamp));
    if (time_of(stamp) < block_start) append(" of block %u", block_at(time_of(stamp)));
    append_place(place_of(stamp));
    append(", with nothing that orders them");
    finish();
}

inline void check_recent(const Access& access, Kind earlier, const Recent& recent) {
    if (EMU_UNLIKELY(time_of(recent.other_block) >= launch_start)) race(access, earlier, recent.other_block);
    for (u64 stamp : {recent.last, recent.previous}) {
        if (time_of(stamp) < launch_start) continue;
        if (of_other_block(stamp) || !ordered(stamp)) race(access, earlier, stamp);
    }
}

// Cut a page's cells finer; the parts of a granule inherit its stamps. Cells are `stride` words apart.
EMU_COLD static void refine(Page& page, u32 shift, u32 stride) {
    u32 parts = 1u << (page.shift - shift);
    for (u32 granule = 1u << (page_shift - page.shift); granule-- != 0;) {
        const u64* from = page.cells + granule * stride;
        for (u32 part = parts; part-- != 0;) {
            u64* to = page.cells + (granule * parts + part) * stride;
            for (u32 word = stride; word-- != 0;) to[word] = from[word];
        }
    }
    page.shift = shift;
}

// The cells an access touches, for `visit(cell)`.
template <u32 log_bytes, class Visit>
inline __attribute__((always_inline)) void for_cells(Page& page, u64 address_in_page, u32 stride, Visit visit) {
    if (log_bytes < coarse && EMU_UNLIKELY(log_bytes < page.shift)) refine(page, log_bytes, stride);
    u64* cell = page.cells + (address_in_page >> page.shift) * stride;
    for (u32 left = 1u << (log_bytes - page.shift); left != 0; --left, cell += stride) visit(cell);
}

static u64* map_cells(u64 words) {
    void* memory =
        mmap(nullptr, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) __builtin_trap();
    return static_cast<u64*>(memory);
}

inline Recent* atomics_at(Page& page, u64 address_in_page) {
    if (page.atomics == nullptr) page.atomics = new Recent[1u << (page_shift - 2)]();
    return &page.atomics[address_in_page >> 2];
}

// A plain access against earlier atomics.
EMU_COLD static void check_atomics(const Access& access, Page& page, u64 address_in_page) {
    for (u64 at = address_in_page >> 2; at <= (address_in_page + access.bytes - 1) >> 2; ++at)
        check_recent(access, Kind::atomic, page.atomics[at]);
}

}  // namespace emu
