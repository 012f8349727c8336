// Global memory: the arrays the device knows, and races within and between the blocks of one launch.
//
// A cell: last write, then `Recent` reads.
#pragma once

#include <algorithm>
#include <mutex>
#include <string>

#include "shared.hpp"

namespace emu {

constexpr u32 global_stride = 4;

struct Region {
    u64 begin, end;
    u64 cells_words;
    bool writable;
    std::string label;
    u64 first_page;  // address of the page of `begin`
    std::vector<Page> pages;
};

static std::vector<Region*> regions;  // by `begin`
static Region* recent_regions[64];    // a cache, by address
static std::mutex device_lock;        // held by a launch: memory cannot go while a kernel runs

static u64 page_count(const Region& region) { return (region.end - region.first_page + 1023) >> page_shift; }

// Memory for cells is reserved when a kernel first touches the region.
EMU_COLD static void map_region(Region& region) {
    constexpr u64 words = global_stride << page_shift;
    region.cells_words = words * page_count(region);
    u64* cells = map_cells(region.cells_words);
    region.pages.resize(page_count(region));
    for (u64 p = 0; p < region.pages.size(); ++p) region.pages[p] = {cells + p * words, nullptr, coarse};
}

static void forget_region(Region* region) {
    for (Page& page : region->pages) delete[] page.atomics;
    if (region->cells_words != 0) munmap(region->pages[0].cells, region->cells_words * 8);
    std::fill(std::begin(recent_regions), std::end(recent_regions), nullptr);
    delete region;
}

// The first region that begins behind an address.
static std::vector<Region*>::iterator first_behind(u64 address) {
    return std::upper_bound(regions.begin(), regions.end(), address,
                            [](u64 wanted, const Region* region) { return wanted < region->begin; });
}

EMU_COLD static Region* search_region(u64 address) {
    auto at = first_behind(address);
    while (at != regions.begin() && address >= (*(at - 1))->end) --at;
    if (at == regions.begin()) return nullptr;
    Region* region = *(at - 1);
    if (region->pages.empty()) map_region(*region);
    return recent_regions[address >> 14 & 63] = region;
}

inline Region* region_at(u64 address) {
    Region* region = recent_regions[address >> 14 & 63];
    if (region != nullptr && address - region->begin < region->end - region->begin) return region;
    return search_region(address);
}

static void append_address(u64 address, u32 bytes) {
    append("%u bytes at ", bytes);
    if (address - (shared.base - shared_margin) < most_shared_bytes + 2 * shared_margin) {
        append("byte %lld of %llu of shared memory", static_cast<long long>(address - shared.base),
               static_cast<unsigned long long>(shared.bytes));
        return;
    }
    constexpr u64 near = 1 << 20;
    auto behind = first_behind(address);
    Region* before = behind == regions.begin() ? nullptr : *(behind - 1);
    Region* after = behind == regions.end() ? nullptr : *behind;
    u64 past = before == nullptr ? near : address < before->end ? 0 : address - before->end;
    u64 ahead = after == nullptr ? near : after->begin - address;
    Region* region = past < near && past <= ahead ? before : ahead < near ? after : nullptr;
    if (region == nullptr) append("address 0x%llx, far from every array", static_cast<unsigned long long>(address));
    else
        append("byte %lld of %llu of %s", static_cast<long long>(address - region->begin),
               static_cast<unsigned long long>(region->end - region->begin), region->label.c_str());
}

EMU_COLD [[noreturn]] static void out_of_bounds(const Access& access, const char* why) {
    append("bounds: %s of ", name_of(access.kind)), append_address(access.address, access.bytes);
    append(", %s, by ", why), append_thread(current->index), append_place(access.place);
    finish();
}

EMU_COLD static void doubtful_global(u64 write, const Access& access) {
    if (of_other_block(write) || !ordered(write)) race(access, Kind::write, write);
}

// In this launch, and not yet known to be ordered.
inline bool doubtful(u64 stamp) {
    return time_of(stamp) >= launch_start && time_of(stamp) - block_start >= current->warp->ordered_span;
}

inline void check_global_write(const u64* cell, const Access& access) {
    if (EMU_UNLIKELY(doubtful(cell[0]))) doubtful_global(cell[0], access);
    if (EMU_UNLIKELY(time_of(cell[1]) >= launch_start))
        check_recent(access, Kind::read, *reinterpret_cast<const Recent*>(cell + 1));
}

template <u32 log_bytes, Kind kind>
inline void global_access(Region& region, u64 address, u64 place) {
    Access access{address, place, 1u << log_bytes, kind};
    if (EMU_UNLIKELY(region.end - address < access.bytes)) out_of_bounds(access, "past the end");
    if (kind != Kind::read && EMU_UNLIKELY(!region.writable)) out_of_bounds(access, "a read-only array");
    if (!detect_races) return;
    Page& page = region.pages[(address - region.first_page) >> page_shift];
    u64 in_page = address & ((1u << page_shift) - 1), stamp = stamp_here(place);
    for_cells<log_bytes>(page, in_page, global_stride, [&](u64* cell) {
        if (kind == Kind::read) {
            if (EMU_UNLIKELY(doubtful(cell[0]))) doubtful_global(cell[0], access);
            reinterpret_cast<Recent*>(cell + 1)->add(stamp);
        } else {
            check_global_write(cell, access);
            if (kind == Kind::write) cell[0] = stamp;
        }
    });
    if (kind == Kind::atomic) {
        for (u32 byte = 0; byte < access.bytes; byte += 4) atomics_at(page, in_page + byte)->add(stamp);
    } else if (EMU_UNLIKELY(page.atomics != nullptr)) {
        check_atomics(access, page, in_page);
    }
}

}  // namespace emu
