// Who runs next: barriers, warp collectives, exits, and the report of a deadlock.
#pragma once

#include "banks.hpp"
#include "fail.hpp"
#include "tensor_core.hpp"

namespace emu {

EMU_COLD [[noreturn]] static void deadlock() {
    append("deadlock: no thread can go on");
    for (u32 first = 0; first < launch->block;) {
        const Thread& thread = threads[first];
        u32 last = first;
        while (last + 1 < launch->block && threads[last + 1].wait == thread.wait &&
               threads[last + 1].site.line == thread.site.line && threads[last + 1].site.file == thread.site.file)
            ++last;
        if (last == first) append("; thread %u ", first);
        else append("; threads %u-%u ", first, last);
        if (thread.wait == Wait::none) append("exited");
        else append("in %s", name_of(thread.wait)), append_site(thread.site);
        first = last + 1;
    }
    finish();
}

static void run_next() {
    if (EMU_UNLIKELY(ready.count == 0)) deadlock();
    switch_to(ready.pop());
}

// Make lanes runnable in the launch's order.
static void release_lanes(const Warp& warp, u32 lanes) {
    u32 first = warp.index * warp_size;
    if (launch->lane_order == Order::forward) {
        for (; lanes != 0; lanes &= lanes - 1) ready.push(first + __builtin_ctz(lanes));
    } else if (launch->lane_order == Order::reverse) {
        for (; lanes != 0; lanes ^= 1u << (31 - __builtin_clz(lanes))) ready.push(first + 31 - __builtin_clz(lanes));
    } else {
        u32 order[warp_size], count = 0;
        for (; lanes != 0; lanes &= lanes - 1) order[count++] = first + __builtin_ctz(lanes);
        for (; count != 0; --count) {
            u32 choice = random_source.below(count);
            ready.push(order[choice]);
            order[choice] = order[count - 1];
        }
    }
}

static void release_block() {
    u32 order[most_warps];
    for (u32 i = 0; i < warp_count; ++i) order[i] = launch->lane_order == Order::reverse ? warp_count - 1 - i : i;
    if (launch->lane_order == Order::random)
        for (u32 i = warp_count; i > 1; --i) {
            u32 choice = random_source.below(i), kept = order[i - 1];
            order[i - 1] = order[choice];
            order[choice] = kept;
        }
    for (u32 i = 0; i < warp_count; ++i) {
        const Warp& warp = warps[order[i]];
        release_lanes(warp, warp.lanes & ~warp.exited);
    }
}

static void know(Warp& warp, u32 least) {
    warp.known_to_all = least;
    warp.ordered_span = least + 1 - block_start;
}

// Everything before comes before everything after, for all warps.
static void order_block() {
    u32 past = now++;
    for (u32 w = 0; w < warp_count; ++w) {
        for (u32 v = 0; v < warp_count; ++v) warps[w].known[v] = past;
        know(warps[w], past);
        warps[w].time = now;
    }
}

static void order_warp(Warp& warp) {
    warp.known[warp.index] = warp.time;
    if (warp_count == 1) know(warp, warp.time);
    warp.time = ++now;
}

static bool same(Site a, Site b) { return a.line == b.line && a.file == b.file; }

EMU_COLD [[noreturn]] static void divergent(const Thread& thread, Wait wait, Site site, const Warp& warp) {
    append("divergence: ");
    append_thread(thread.index);
    append(" comes to %s(%u)", name_of(wait), static_cast<u32>(thread.value)), append_site(site);
    append(" while others of its warp wait in %s(%u)", name_of(warp.wait), warp.argument), append_site(warp.site);
    finish();
}

static void complete_block_sync() {
    arrived_threads = 0;
    block_met();
    order_block();
    release_block();
}

static void block_sync(Site site) {
    Thread& thread = *current;
    if (arrived_threads == 0) block_site = site;
    if (EMU_UNLIKELY(!same(site, block_site))) {
        append("divergence: ");
        append_thread(thread.index);
        append(" comes to block_sync"), append_site(site);
        append(" while others wait in the one"), append_site(block_site);
        finish();
    }
    thread.wait = Wait::block_sync;
    thread.site = site;
    if (++arrived_threads == live_threads) complete_block_sync();
    run_next();
    thread.wait = Wait::none;
}

EMU_COLD [[noreturn]] static void exited_source(const Warp& warp, u32 lane, u32 source) {
    append("divergence: lane %u of warp %u takes a value in %s", lane, warp.index, name_of(warp.wait));
    append_site(warp.site);
    append(" from lane %u, which is not there", source);
    finish();
}

// What takes all 32 lanes, by the text of the PTX ISA.
EMU_COLD [[noreturn]] static void incomplete_warp(const Warp& warp) {
    append("divergence: %s of warp %u", name_of(warp.wait), warp.index), append_site(warp.site);
    append(", of which only the lanes 0x%08x are there", warp.arrived);
    finish();
}

// ldmatrix: `value` is the address of a row.
static void load_matrices(Thread* lanes, bool transposed) {
    const u8* rows[warp_size];
    for (u32 lane = 0; lane < warp_size; ++lane) rows[lane] = reinterpret_cast<const u8*>(lanes[lane].value);
    for (u32 lane = 0; lane < warp_size; ++lane)
        for (u32 matrix = 0; matrix < 4; ++matrix) {
            u32 r = lane / 4, c = lane % 4;
            const u8 *low = rows[8 * matrix + r] + 4 * c, *high = low + 2;
            if (transposed) low = rows[8 * matrix + 2 * c] + 2 * r, high = rows[8 * matrix + 2 * c + 1] + 2 * r;
            lanes[lane].words[matrix] = low[0] | low[1] << 8 | high[0] << 16 | static_cast<u32>(high[1]) << 24;
        }
}

// Of a ballot each lane brings its bit.
static void vote(Thread* lanes) {
    u64 any = 0;
    for (u32 lane = 0; lane < warp_size; ++lane) any |= lanes[lane].value;
    for (u32 lane = 0; lane < warp_size; ++lane) lanes[lane].value = any;
}

static void complete_whole_warp(const Warp& warp, Thread* lanes) {
    if (EMU_UNLIKELY(warp.arrived != ~0u)) incomplete_warp(warp);
    if (warp.wait == Wait::mma) mma_of_warp(static_cast<Mma>(warp.argument), lanes);
    else if (warp.wait == Wait::load_matrices) load_matrices(lanes, warp.argument != 0);
    else vote(lanes);
}

// All live lanes have come: compute every lane's result.
static void complete_collective(Warp& warp) {
    u32 lanes = warp.arrived;
    Thread* first = &threads[warp.index * warp_size];
    lanes_met(warp.index);
    if (warp.wait == Wait::warp_sync) {
        order_warp(warp);
    } else if (warp.wait != Wait::shuffle_xor) {
        complete_whole_warp(warp, first);
    } else {
        u64 values[warp_size];
        for (u32 lane = 0; lane < warp_size; ++lane) values[lane] = first[lane].value;
        for (u32 rest = lanes; rest != 0; rest &= rest - 1) {
            u32 lane = __builtin_ctz(rest), source = lane ^ warp.argument;
            if (EMU_UNLIKELY((lanes >> source & 1) == 0)) exited_source(warp, lane, source);
            first[lane].value = values[source];
        }
    }
    warp.arrived = 0;
    release_lanes(warp, lanes);
}

static u64 collective(Wait wait, u32 argument, u64 value, Site site) {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    if (warp.arrived == 0) {
        warp.wait = wait;
        warp.site = site;
        warp.argument = argument;
    } else if (EMU_UNLIKELY(warp.wait != wait || warp.argument != argument || !same(warp.site, site))) {
        thread.value = argument;
        divergent(thread, wait, site, warp);
    }
    thread.wait = wait;
    thread.site = site;
    thread.value = value;
    warp.arrived |= 1u << thread.lane;
    if (warp.arrived == (warp.lanes & ~warp.exited)) complete_collective(warp);
    run_next();
    thread.wait = Wait::none;
    return thread.value;
}

// A thread that has exited counts as arrived wherever the others wait.
static void exit_thread() {
    Thread& thread = *current;
    Warp& warp = *thread.warp;
    warp.exited |= 1u << thread.lane;
    --live_threads;
    if (live_threads == 0) back_to_main();
    if (warp.arrived != 0 && warp.arrived == (warp.lanes & ~warp.exited)) complete_collective(warp);
    if (arrived_threads == live_threads) complete_block_sync();
    run_next();
}

static void thread_main() {
    // On the own stack, where the kernel's instrumented copy of its parameter may read it.
    void* params = __builtin_alloca_with_align(launch->params_bytes, 64 * 8);
    __builtin_memcpy(params, launch->params, launch->params_bytes);
    launch->entry(params);
    exit_thread();
}

static void run_block(u32 block) {
    current_block = block;
    u32 past = now++;
    block_start = now;
    block_starts.push_back({block_start, block});
    warp_count = (launch->block + warp_size - 1) / warp_size;
    live_threads = launch->block;
    arrived_threads = ready.head = ready.count = 0;
    for (u32 w = 0; w < warp_count; ++w) {
        Warp& warp = warps[w];
        u32 rest = launch->block - w * warp_size;
        warp = Warp{};
        warp.index = w;
        warp.time = now;
        warp.lanes = rest >= warp_size ? ~0u : (1u << rest) - 1;
        for (u32 v = 0; v < most_warps; ++v) warp.known[v] = past;
        know(warp, past);
    }
    for (u32 t = 0; t < launch->block; ++t) {
        Thread& thread = threads[t];
        thread.warp = &warps[t / warp_size];
        thread.index = t;
        thread.lane = t % warp_size;
        thread.wait = Wait::none;
        thread.site = {};
        prepare_fiber(t);
    }
    release_block();
    current = &threads[ready.pop()];
    switch_fiber(&main_stack_pointer, current->stack_pointer);
    current = nullptr;
}

}  // namespace emu
