// Bank conflicts: wavefronts of each instruction that touches shared memory, counted when a launch asks for it.
//
// Lanes run one after the other here: the k-th execution of an instruction by each lane of a warp, since its lanes last
// met, is taken for one access of the warp.
#pragma once

#include <algorithm>
#include <map>
#include <unordered_map>

#include "machine.hpp"

namespace emu {

constexpr u32 banks = 32, word_bytes = 4, wavefront_bytes = banks * word_bytes;

enum class Traffic : u32 { read, write, load_matrices, copy_async };

// An access of a warp: byte offsets in shared memory of the lanes that take part.
struct WarpAccess {
    u32 lanes;
    u32 offsets[warp_size];
};

struct Instruction {
    u32 executions[warp_size];
    std::vector<WarpAccess> accesses;
};

// `_Wavefronts` in banks.py has the same fields.
struct Wavefronts {
    u64 place;
    u32 traffic, bytes;
    u64 accesses, wavefronts, least;
};

static bool count_banks;
static std::unordered_map<u64, Instruction> since_lanes_met[most_warps];  // by place, traffic and size
static std::map<u64, Wavefronts> wavefronts_of_launch;

inline u64 instruction_key(Traffic traffic, u32 log_bytes, u64 place) {
    return place << 8 | static_cast<u64>(traffic) << 4 | log_bytes;
}

EMU_COLD static void count_access(Traffic traffic, u32 log_bytes, u64 offset, u64 place) {
    u32 lane = current->lane;
    Instruction& instruction = since_lanes_met[current->warp->index][instruction_key(traffic, log_bytes, place)];
    u32 execution = instruction.executions[lane]++;
    if (execution == instruction.accesses.size()) instruction.accesses.push_back({});
    WarpAccess& access = instruction.accesses[execution];
    access.lanes |= 1u << lane;
    access.offsets[lane] = static_cast<u32>(offset);
}

// Of lanes that are served together: the most different words that one bank has to give.
static u32 wavefronts_of_lanes(const WarpAccess& access, u32 lanes, u32 bytes) {
    u32 words[banks][warp_size], counts[banks] = {}, most = 0;
    for (; lanes != 0; lanes &= lanes - 1) {
        u32 first = access.offsets[__builtin_ctz(lanes)];
        for (u32 word = first / word_bytes; word <= (first + bytes - 1) / word_bytes; ++word) {
            u32 bank = word % banks, *end = words[bank] + counts[bank];
            if (std::find(words[bank], end, word) != end) continue;
            *end = word;
            most = std::max(most, ++counts[bank]);
        }
    }
    return most;
}

static void add_access(Wavefronts& sum, const WarpAccess& access, u32 bytes) {
    // All lanes at once, or as many as can ask for 128 bytes.
    u32 together = bytes <= word_bytes ? warp_size : wavefront_bytes / bytes;
    u32 asked = static_cast<u32>(__builtin_popcount(access.lanes)) * bytes;
    for (u32 first = 0; first < warp_size; first += together) {
        u32 lanes = (together == warp_size ? ~0u : (1u << together) - 1) << first;
        sum.wavefronts += wavefronts_of_lanes(access, access.lanes & lanes, bytes);
    }
    sum.least += (asked + wavefront_bytes - 1) / wavefront_bytes;
    ++sum.accesses;
}

EMU_COLD static void count_wavefronts(u32 warp) {
    for (const auto& [key, instruction] : since_lanes_met[warp]) {
        u32 bytes = 1u << (key & 15);
        Wavefronts& sum = wavefronts_of_launch[key];
        sum.place = key >> 8, sum.traffic = key >> 4 & 15, sum.bytes = bytes;
        for (const WarpAccess& access : instruction.accesses) add_access(sum, access, bytes);
    }
    since_lanes_met[warp].clear();
}

// The lanes of a warp have met, or its block has ended.
inline void lanes_met(u32 warp) {
    if (EMU_UNLIKELY(count_banks)) count_wavefronts(warp);
}

inline void block_met() {
    if (EMU_UNLIKELY(count_banks))
        for (u32 w = 0; w < warp_count; ++w) count_wavefronts(w);
}

static void prepare_banks() {
    count_banks = launch->count_banks != 0;
    for (auto& instructions : since_lanes_met) instructions.clear();
    wavefronts_of_launch.clear();
}

}  // namespace emu
