// Shared memory: bounds, uninitialised reads, races.
//
// A cell: last write; last read (the greatest time); then per warp {time of its last read (32 bits), lanes that read at
// that time (32)}. Forgetting a warp's older reads loses nothing: whoever does not know them does not know the newest
// either, and lanes of that warp know them all.
#pragma once

#include <cstring>

#include "shadow.hpp"

namespace emu {

constexpr u32 most_shared_bytes = 256 << 10;
constexpr u32 shared_margin = 1 << 20;  // around it, to tell an address that misses shared memory from any other

constexpr u32 shared_pages = most_shared_bytes >> page_shift;
constexpr u64 shared_page_words = (2 + most_warps) << page_shift;
constexpr u64 shared_cells_bytes = shared_page_words * shared_pages * 8;

static struct {
    u64 base;
    u64 bytes;
    u64 limits[5];  // [log2 of access size]: offsets below it are inside
    u32 stride;
    Page pages[shared_pages];
} shared;

static void prepare_shared() {
    if (shared.base == 0) {
        void* memory = mmap(nullptr, most_shared_bytes + 2 * shared_margin, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) __builtin_trap();
        shared.base = reinterpret_cast<u64>(memory) + shared_margin;
        u64* cells = map_cells(shared_page_words * shared_pages);
        for (u32 p = 0; p < shared_pages; ++p) shared.pages[p].cells = cells + p * shared_page_words;
    }
    shared.bytes = launch->shared_bytes;
    shared.stride = 2 + (launch->block + warp_size - 1) / warp_size;
    for (u32 i = 0; i < 5; ++i) shared.limits[i] = shared.bytes >> i == 0 ? 0 : shared.bytes - (1u << i) + 1;
    for (Page& page : shared.pages) page.shift = coarse;
}

// Before each block: nothing of the last one is left.
static void poison_shared() {
    memset(reinterpret_cast<void*>(shared.base), 0xff, shared.bytes);
    for (Page& page : shared.pages) {
        delete[] page.atomics;
        page.atomics = nullptr;
    }
}

// What is in a page's cells means something only from this block on, however the granules lay before.
EMU_COLD static void doubtful_read(u64 write, const Access& access) {
    if (time_of(write) < block_start) {
        append("uninitialised: read of "), append_address(access.address, access.bytes);
        append(", which no thread of this block has written yet, by ");
        append_thread(current->index), append_place(access.place);
        finish();
    }
    if (!ordered(write)) race(access, Kind::write, write);
}

EMU_COLD static void check_reads(const u64* cell, const Access& access) {
    u64 last = cell[1];
    if (!ordered(last)) race(access, Kind::read, last);
    for (u32 w = 0; w < warp_count; ++w) {
        u64 entry = cell[2 + w];
        u32 lanes = static_cast<u32>(entry);
        if (w == current->warp->index) lanes &= ~(1u << current->lane);
        if (time_of(entry) > current->warp->known[w] && lanes != 0)
            race(access, Kind::read, (entry >> 32 << 32) | (w * warp_size + __builtin_ctz(lanes)));
    }
}

template <u32 log_bytes>
inline void shared_read(u64 offset, u64 place) {
    const Warp& warp = *current->warp;
    Access access{shared.base + offset, place, 1u << log_bytes, Kind::read};
    Page& page = shared.pages[offset >> page_shift];
    u64 in_page = offset & ((1u << page_shift) - 1), stamp = stamp_here(place);
    u64 mine = static_cast<u64>(warp.time) << 32, lane = 1u << current->lane;
    for_cells<log_bytes>(page, in_page, shared.stride, [&](u64* cell) {
        if (EMU_UNLIKELY(time_of(cell[0]) - block_start >= warp.ordered_span)) doubtful_read(cell[0], access);
        if (time_of(cell[1]) <= warp.time) cell[1] = stamp;
        u64* reader = &cell[2 + warp.index];
        *reader = (*reader & ~u64{0xffffffff}) == mine ? *reader | lane : mine | lane;
    });
    if (EMU_UNLIKELY(page.atomics != nullptr)) check_atomics(access, page, in_page);
}

inline void check_shared_write(const u64* cell, const Access& access) {
    u32 known = current->warp->known_to_all;
    if (EMU_UNLIKELY(time_of(cell[0]) > known) && !ordered(cell[0])) race(access, Kind::write, cell[0]);
    if (EMU_UNLIKELY(time_of(cell[1]) > known)) check_reads(cell, access);
}

template <u32 log_bytes>
inline void shared_write(u64 offset, u64 place) {
    Access access{shared.base + offset, place, 1u << log_bytes, Kind::write};
    Page& page = shared.pages[offset >> page_shift];
    u64 in_page = offset & ((1u << page_shift) - 1), stamp = stamp_here(place);
    for_cells<log_bytes>(page, in_page, shared.stride, [&](u64* cell) {
        check_shared_write(cell, access);
        cell[0] = stamp;
    });
    if (EMU_UNLIKELY(page.atomics != nullptr)) check_atomics(access, page, in_page);
}

// Needs initialised memory like a read, and meets plain accesses like a write.
template <u32 log_bytes>
static void shared_atomic(u64 offset, u64 place) {
    Access access{shared.base + offset, place, 1u << log_bytes, Kind::atomic};
    Page& page = shared.pages[offset >> page_shift];
    u64 in_page = offset & ((1u << page_shift) - 1), stamp = stamp_here(place);
    for_cells<log_bytes>(page, in_page, shared.stride, [&](u64* cell) {
        doubtful_read(cell[0], access);
        check_shared_write(cell, access);
    });
    for (u32 byte = 0; byte < access.bytes; byte += 4) atomics_at(page, in_page + byte)->add(stamp);
}

}  // namespace emu
