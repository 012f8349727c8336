// Collectives of whole warps on matrices: mma and ldmatrix, as their callers enter them.
#pragma once

#include "access.hpp"
#include "schedule.hpp"

namespace emu {

// All lanes get elements of all rows, so that all are readers: the write of a row by any of them needs a warp_sync
// before this, and after it.
static void read_by_warp(u64 offset, u64 place) {
    const Warp& warp = *current->warp;
    shared_read<4>(offset, place);
    Page& page = shared.pages[offset >> page_shift];
    for_cells<4>(page, offset & ((1u << page_shift) - 1), shared.stride, [&](u64* cell) {
        if (EMU_UNLIKELY(time_of(cell[0]) > warp.known[thread_of(cell[0]) / warp_size]))
            race({shared.base + offset, place, 16, Kind::read}, Kind::write, cell[0]);
        cell[2 + warp.index] |= warp.lanes;
    });
}

static void read_row(const void* row, const void* pc) {
    u64 address = reinterpret_cast<u64>(row), place = image_offset(pc);
    Access access{address, place, 16, Kind::read};
    ++launch->accesses;
    if (EMU_UNLIKELY(address % 16 != 0)) misaligned(access);
    if (EMU_UNLIKELY(address - shared.base >= shared.limits[4])) out_of_bounds(access, "of which ldmatrix reads none");
    if (EMU_UNLIKELY(count_banks)) count_access(Traffic::load_matrices, 4, address - shared.base, place);
    if (detect_races) read_by_warp(address - shared.base, place);
}

}  // namespace emu
