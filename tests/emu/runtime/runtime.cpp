// The runtime library: one translation unit, compiled once. Entry points for kernels and for Python.
#include "atomic.hpp"
#include "collectives.hpp"
#include "copy_async.hpp"
#include "schedule.hpp"
#include "undefined.hpp"

using namespace emu;

extern "C" {

unsigned emu_thread_index() { return current->index; }
unsigned emu_block_index() { return current_block; }
unsigned emu_block_count() { return launch->grid; }

unsigned char* emu_shared_memory(unsigned long long bytes) {
    if (bytes > shared.bytes) {
        append("limits: the kernel's shared memory is a struct of %llu bytes, and the launch asked for %llu", bytes,
               static_cast<unsigned long long>(shared.bytes));
        finish();
    }
    return reinterpret_cast<unsigned char*>(shared.base);
}

void emu_block_sync(Site site) { block_sync(site); }
void emu_warp_sync(Site site) { collective(Wait::warp_sync, 0, 0, site); }

unsigned long long emu_shuffle_xor(unsigned long long bits, unsigned lane_mask, Site site) {
    if (lane_mask >= warp_size) {
        append("limits: shuffle_xor with lane mask %u, past 31,", lane_mask), append_site(site);
        finish();
    }
    return collective(Wait::shuffle_xor, lane_mask, bits, site);
}

bool emu_warp_any(bool condition, Site site) { return collective(Wait::warp_any, 0, condition, site) != 0; }
unsigned emu_warp_ballot(bool condition, Site site) {
    return static_cast<u32>(collective(Wait::warp_ballot, 0, condition ? 1u << current->index % warp_size : 0, site));
}

Floats emu_mma(Mma kind, u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1, Floats c, Site site) {
    u32* words = current->words;
    words[0] = a0, words[1] = a1, words[2] = a2, words[3] = a3, words[4] = b0, words[5] = b1;
    memcpy(words + 6, &c, sizeof c);
    collective(Wait::mma, static_cast<u32>(kind), 0, site);
    memcpy(&c, words + 6, sizeof c);
    return c;
}

Words emu_load_matrices(const void* row, bool transposed, Site site) {
    read_row(row, __builtin_return_address(0));
    u32* words = current->words;
    collective(Wait::load_matrices, transposed, reinterpret_cast<u64>(row), site);
    return {words[0], words[1], words[2], words[3]};
}

void emu_copy_async(void* shared, const void* global, u32 size, u32 bytes) {
    const void* pc = __builtin_return_address(0);
    const Copy copy{reinterpret_cast<u64>(shared), reinterpret_cast<u64>(global), current->commits, image_offset(pc),
                    size, bytes};
    if (size == 16) copy_async<4>(copy, pc);
    else if (size == 8) copy_async<3>(copy, pc);
    else copy_async<2>(copy, pc);
}

void emu_copy_async_commit() { ++current->commits; }
void emu_copy_async_wait(u32 pending) { copy_async_wait(pending); }

Region* emu_register(u64 begin, u64 bytes, u32 writable, const char* label) {
    std::lock_guard<std::mutex> lock(device_lock);
    Region* region = new Region{begin, begin + bytes, 0, writable != 0, label, begin >> page_shift << page_shift, {}};
    regions.insert(first_behind(begin), region);
    return region;
}

void emu_unregister(Region* region) {
    std::lock_guard<std::mutex> lock(device_lock);
    regions.erase(std::find(regions.begin(), regions.end(), region));
    forget_region(region);
}

// Before the clock runs over: forget all accesses, and start anew.
static void restart_time() {
    madvise(shared.pages[0].cells, shared_cells_bytes, MADV_DONTNEED);
    for (Region* region : regions) {
        if (region->pages.empty()) continue;
        madvise(region->pages[0].cells, region->cells_words * 8, MADV_DONTNEED);
        for (Page& page : region->pages) {
            delete[] page.atomics;
            page.atomics = nullptr;
        }
    }
    now = 1;
}

// For the tests: time is what makes it run over.
void emu_set_time(u32 time) { now = time; }

// What the last launch counted, in no order: up to `most` instructions, and returns how many there are.
u64 emu_wavefronts(Wavefronts* to, u64 most) {
    u64 count = 0;
    for (const auto& [key, sum] : wavefronts_of_launch)
        if (count++ < most) *to++ = sum;
    return count;
}

// Leaves `report` empty, or fills it and abandons the launch.
void emu_launch(Launch* request) {
    std::lock_guard<std::mutex> lock(device_lock);
    launch = request;
    detect_races = request->detect_races != 0;
    request->report[0] = 0;
    char* report = request->report;
    random_source.state = request->seed * 0x9e3779b97f4a7c15ull | 1;
    block_starts.clear();
    reserve_stacks(request->block);
    prepare_shared();
    prepare_banks();
    plain_launch = detect_races && !count_banks;
    if (now >= last_time) restart_time();
    launch_start = now + 1;
    std::vector<u32> order;
    if (request->block_order == Order::random) {
        for (u32 b = 0; b < request->grid; ++b) order.push_back(b);
        for (u32 b = request->grid; b > 1; --b) std::swap(order[b - 1], order[random_source.below(b)]);
    }
    for (u32 b = 0; b < request->grid && report[0] == 0; ++b) {
        poison_shared();
        run_block(!order.empty() ? order[b] : request->block_order == Order::reverse ? request->grid - 1 - b : b);
        forget_copies();
        block_met();
    }
    launch = nullptr;
}
}
