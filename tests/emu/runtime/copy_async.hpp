// cp.async: the copies a thread has under way, and what they mean to the race detector.
//
// The write takes place at some time between the issue and the wait that covers it. At the issue it is checked against
// all that came before; until the wait its bytes are stamped `under_way`, which is ordered with nothing, not even with
// the thread itself; at the wait they get the stamp of that moment.
#pragma once

#include "access.hpp"

namespace emu {

static void land(const Copy& copy) {
    u8* to = reinterpret_cast<u8*>(copy.to);
    memcpy(to, reinterpret_cast<const void*>(copy.from), copy.bytes);
    memset(to + copy.bytes, 0, copy.size - copy.bytes);
}

// Whole granules, since copies are of 4 bytes at least: a later access may have refined the page.
static void stamp_copy(const Copy& copy, u64 stamp) {
    for (u64 offset = copy.to - shared.base, end = offset + copy.size; offset < end; offset += 4) {
        Page& page = shared.pages[offset >> page_shift];
        for_cells<coarse>(page, offset & ((1u << page_shift) - 1), shared.stride, [&](u64* cell) { cell[0] = stamp; });
    }
}

// Zeros need no source.
template <u32 log_bytes>
static void read_source(u64 from, u32 bytes, const void* pc) {
    const void* source = reinterpret_cast<const void*>(from);
    if (bytes == 0) return;
    if (region_at(from) == nullptr) out_of_bounds({from, image_offset(pc), bytes, Kind::read}, "no global memory");
    if (bytes == 1u << log_bytes) on_access<log_bytes, Kind::read>(source, pc);
    else on_range<Kind::read>(source, bytes, pc);
}

EMU_COLD [[noreturn]] static void bad_copy(const char* kind, const Copy& copy, u64 address, const char* what) {
    append("%s: asynchronous copy, %s ", kind, what), append_address(address, copy.size);
    append(" (address 0x%llx) by ", static_cast<unsigned long long>(address));
    append_thread(current->index), append_place(copy.place);
    finish();
}

template <u32 log_bytes>
static void check_copy(const Copy& copy) {
    if (copy.bytes > copy.size) {
        append("undefined: asynchronous copy of %u of %u bytes by ", copy.bytes, copy.size);
        append_thread(current->index), append_place(copy.place);
        finish();
    }
    if (copy.to % copy.size != 0) bad_copy("misaligned", copy, copy.to, "to");
    if (copy.from % copy.size != 0) bad_copy("misaligned", copy, copy.from, "from");
    if (copy.to - shared.base >= shared.limits[log_bytes]) bad_copy("bounds", copy, copy.to, "to");
}

template <u32 log_bytes>
static void copy_async(const Copy& copy, const void* pc) {
    const u64 offset = copy.to - shared.base;
    ++launch->accesses;
    check_copy<log_bytes>(copy);
    read_source<log_bytes>(copy.from, copy.bytes, pc);
    if (EMU_UNLIKELY(count_banks)) count_access(Traffic::copy_async, log_bytes, offset, copy.place);
    if (detect_races) {
        shared_write<log_bytes>(offset, copy.place);
        stamp_copy(copy, under_way | (stamp_here(copy.place) & 0xffffffff));
    }
    if (!launch->lazy_copies) land(copy);
    current->copies.push_back(copy);
}

// All but the `pending` youngest groups have arrived; what is in no group has not.
static void copy_async_wait(u32 pending) {
    Thread& thread = *current;
    u64 arrived = thread.commits > pending ? thread.commits - pending : 0, count = 0;
    for (; count < thread.copies.size() && thread.copies[count].group < arrived; ++count) {
        const Copy& copy = thread.copies[count];
        if (launch->lazy_copies) land(copy);
        if (detect_races) stamp_copy(copy, stamp_here(copy.place));
    }
    thread.copies.erase(thread.copies.begin(), thread.copies.begin() + static_cast<long>(count));
}

// What a block leaves under way must not look like the next one's.
static void forget_copies() {
    for (u32 t = 0; t < launch->block; ++t) {
        if (detect_races)
            for (const Copy& copy : threads[t].copies) stamp_copy(copy, 0);
        threads[t].copies.clear();
        threads[t].commits = 0;
    }
}

}  // namespace emu
