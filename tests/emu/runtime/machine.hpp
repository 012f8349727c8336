// The state of the machine: one launch at a time, its blocks one after the other, each thread of a block a fiber.
#pragma once

#include <cstdint>
#include <vector>

#include "api.hpp"

namespace emu {

using u8 = unsigned char;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

constexpr u32 warp_size = 32;
constexpr u32 most_threads = 1024;
constexpr u32 most_warps = most_threads / warp_size;

#define EMU_COLD __attribute__((noinline, cold))
#define EMU_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

enum class Order : u32 { forward, reverse, random };

// What Python asks for; `Launch` in device.py has the same fields.
struct Launch {
    void (*entry)(const void*);
    const char* name;
    u64 image_begin, image_end;  // the kernel's binary: its constants may be read
    const void* params;
    u32 params_bytes, grid, block, shared_bytes;
    Order lane_order, block_order;
    u32 detect_races, lazy_copies, count_banks, unused;
    u64 seed;
    u64 accesses, switches;  // counted
    char* report;
    u64 report_bytes;
};

enum class Wait : u32 { none, block_sync, warp_sync, shuffle_xor, warp_any, warp_ballot, mma, load_matrices };

inline const char* name_of(Wait wait) {
    static const char* const names[] = {"nothing",  "block_sync",  "warp_sync", "shuffle_xor",
                                        "warp_any", "warp_ballot", "mma",       "load_matrices"};
    return names[static_cast<u32>(wait)];
}

// Time is one counter of the process, which every ordering event moves on. All lanes of a warp have the same time,
// because every such event takes whole warps. `known[v]`: all accesses of warp v up to that time come before what this
// warp does next.
struct Warp {
    u32 time;
    u32 index;
    u32 known[most_warps];
    u32 known_to_all;  // the least of `known`
    u32 ordered_span;  // times from the block's start on that are known of every warp: known_to_all - block_start + 1
    u32 lanes, exited, arrived;  // bits
    Wait wait;
    Site site;
    u32 argument;
};

// An asynchronous copy that its thread has not waited for.
struct Copy {
    u64 to, from;  // addresses
    u64 group;     // number of commits before it
    u64 place;
    u32 size;   // bytes that are written: 16, 8 or 4
    u32 bytes;  // of these, read from the source
};

struct Thread {
    void* stack_pointer;
    u64 stack_begin, stack_end;
    Warp* warp;
    u32 index, lane;
    Wait wait;
    Site site;
    u64 value;  // published to a collective, and its result
    u32 words[10];  // the same, of one on matrices: fragments of a (4), b (2), d (4); or 4 words that were loaded
    u64 commits;
    std::vector<Copy> copies;
};

struct Random {
    u64 state;
    u32 below(u32 bound) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<u32>((static_cast<unsigned __int128>(state) * bound) >> 64);
    }
};

// Threads that can run, first come first served.
struct ReadyQueue {
    u16 entries[most_threads];
    u32 head, count;
    void push(u32 thread) { entries[(head + count++) % most_threads] = static_cast<u16>(thread); }
    u32 pop() {
        u32 thread = entries[head];
        head = (head + 1) % most_threads;
        --count;
        return thread;
    }
};

struct BlockStart {
    u32 time, block;
};

static Launch* launch;
static Thread* current;
static Thread threads[most_threads];
static Warp warps[most_warps];
static u32 warp_count, live_threads, arrived_threads;
static Site block_site;
static ReadyQueue ready;
static Random random_source;
static void* main_stack_pointer;
static bool detect_races;
static bool plain_launch;  // detects races, and counts no bank conflicts

// A launch that could run past it does not start; one launch alone cannot take the rest.
constexpr u32 last_time = 0xc0000000;

static u32 now = 1;
static u32 launch_start, block_start;  // times
static u32 current_block;
static std::vector<BlockStart> block_starts;

}  // namespace emu
