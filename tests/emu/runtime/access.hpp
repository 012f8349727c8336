// Every instrumented access of a kernel comes here: which memory is it, and is it allowed.
#pragma once

#include "banks.hpp"
#include "global.hpp"

namespace emu {

EMU_COLD [[noreturn]] static void misaligned(const Access& access) {
    append("misaligned: %s of ", name_of(access.kind)), append_address(access.address, access.bytes);
    append(" (address 0x%llx) by ", static_cast<unsigned long long>(access.address));
    append_thread(current->index), append_place(access.place);
    finish();
}

// Neither shared memory nor an array: the thread's own stack, the kernel's constants, or a mistake.
EMU_COLD static void check_private(const Access& access) {
    u64 address = access.address;
    if (address >= current->stack_begin && address + access.bytes <= current->stack_end) return;
    bool constant = address >= launch->image_begin && address + access.bytes <= launch->image_end;
    if (constant && access.kind == Kind::read) return;
    if (address - (shared.base - shared_margin) < most_shared_bytes + 2 * shared_margin)
        out_of_bounds(access, "outside what the launch asked for");
    if (address - stacks_begin < most_threads * stack_bytes) out_of_bounds(access, "another thread's stack");
    out_of_bounds(access, "no memory of this device");
}

template <u32 log_bytes, Kind kind>
inline __attribute__((always_inline)) void on_access(const void* pointer, const void* pc) {
    u64 address = reinterpret_cast<u64>(pointer), place = image_offset(pc);
    ++launch->accesses;
    // Of 16 bytes GCC knows only that they are aligned to 8; what their type asks for is checked in undefined.hpp.
    constexpr u64 alignment = log_bytes < 3 ? 1u << log_bytes : 8;
    if (EMU_UNLIKELY(address & (alignment - 1))) misaligned({address, place, 1u << log_bytes, kind});
    u64 offset = address - shared.base;
    if (offset < shared.limits[log_bytes]) {
        if (EMU_UNLIKELY(!plain_launch)) {
            if (count_banks && kind != Kind::atomic)
                count_access(kind == Kind::read ? Traffic::read : Traffic::write, log_bytes, offset, place);
            if (!detect_races) return;
        }
        if (kind == Kind::read) shared_read<log_bytes>(offset, place);
        else if (kind == Kind::write) shared_write<log_bytes>(offset, place);
        else shared_atomic<log_bytes>(offset, place);
    } else if (address - current->stack_begin < stack_bytes - page_bytes) {
        return;
    } else if (Region* region = region_at(address)) {
        global_access<log_bytes, kind>(*region, address, place);
    } else {
        check_private({address, place, 1u << log_bytes, kind});
    }
}

// In the largest aligned pieces.
template <Kind kind>
static void on_range(const void* pointer, u64 bytes, const void* pc) {
    const u8* at = static_cast<const u8*>(pointer);
    while (bytes != 0) {
        u64 address = reinterpret_cast<u64>(at);
        u64 piece = address % 4 == 0 && bytes >= 4 ? 4 : address % 2 == 0 && bytes >= 2 ? 2 : 1;
        if (piece == 4) on_access<2, kind>(at, pc);
        else if (piece == 2) on_access<1, kind>(at, pc);
        else on_access<0, kind>(at, pc);
        at += piece;
        bytes -= piece;
    }
}

}  // namespace emu

// What -fsanitize=thread makes of loads and stores. The library of that name is not linked: these are the only ones.
#define EMU_HOOK(bytes, log_bytes)                                                                   \
    void __tsan_read##bytes(void* p) {                                                               \
        emu::on_access<log_bytes, emu::Kind::read>(p, __builtin_return_address(0));                  \
    }                                                                                                \
    void __tsan_write##bytes(void* p) {                                                              \
        emu::on_access<log_bytes, emu::Kind::write>(p, __builtin_return_address(0));                 \
    }
extern "C" {
EMU_HOOK(1, 0)
EMU_HOOK(2, 1)
EMU_HOOK(4, 2)
EMU_HOOK(8, 3)
EMU_HOOK(16, 4)

// Types that promise less alignment than their size: the hardware takes them in pieces.
void __tsan_read_range(void* p, unsigned long bytes) {
    emu::on_range<emu::Kind::read>(p, bytes, __builtin_return_address(0));
}
void __tsan_write_range(void* p, unsigned long bytes) {
    emu::on_range<emu::Kind::write>(p, bytes, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// The linker sends calls of memcpy and the like here (--wrap): GCC does not instrument them.
void* __wrap_memcpy(void* to, const void* from, unsigned long bytes) {
    emu::on_range<emu::Kind::read>(from, bytes, __builtin_return_address(0));
    emu::on_range<emu::Kind::write>(to, bytes, __builtin_return_address(0));
    return memcpy(to, from, bytes);
}
void* __wrap_memmove(void* to, const void* from, unsigned long bytes) {
    emu::on_range<emu::Kind::read>(from, bytes, __builtin_return_address(0));
    emu::on_range<emu::Kind::write>(to, bytes, __builtin_return_address(0));
    return memmove(to, from, bytes);
}
void* __wrap_memset(void* to, int byte, unsigned long bytes) {
    emu::on_range<emu::Kind::write>(to, bytes, __builtin_return_address(0));
    return memset(to, byte, bytes);
}
}
