// The loop over the tiles that a schedule yields, with one or two of them in shared memory.
#pragma once

#include <ptx/barrier.cuh>
#include <ptx/copy_async.cuh>

// `copy(stage, tile)` starts asynchronous copies, `settle(stage)` finishes the thread's own once they have arrived.
// `visit(stage, tile)` calls leave(copy) where its thread no longer reads the stage; with kMeets also for the barrier that
// leaving is. Nobody needs shared memory any more when it starts, but for what all threads wrote before.
template <int kStages, bool kMeets, class Schedule>
class TileWalk {
    using Tile = typename Schedule::Tile;

public:
    __device__ explicit TileWalk(Schedule& schedule) : schedule_(schedule) {}

    template <class Copy, class Settle, class Visit>
    __device__ __forceinline__ void run(const Copy& copy, const Settle& settle, const Visit& visit) {
        block_sync();  // the schedule's bounds are there
        bool more = start();
        if (more) copy(0, tile_);
        copy_async_commit();
        for (int stage = 0; more; stage ^= kStages - 1) {
            copy_async_wait<0>();
            settle(stage);
            block_sync();  // this tile is there, and so are the next one's segments; nobody reads the one before
            if constexpr (kStages == 2) {
                if (look_ahead()) copy(stage ^ 1, following_);
                copy_async_commit();
                if constexpr (!kComputed) further_ = another_ && schedule_.ahead(after_);
            }
            visit(stage, tile_);
            more = advance();
        }
    }

    template <class Copy>
    __device__ __forceinline__ void leave(const Copy& copy) {
        if constexpr (kStages == 1) {
            if constexpr (!kComputed) another_ = schedule_.ahead(following_);
            block_sync();  // nobody reads this tile; the next one's segments are there
            if (look_ahead()) copy(0, following_);
            copy_async_commit();
        } else if constexpr (kMeets) {
            block_sync();
        }
    }

private:
    // Then a tile is all that it takes to find the next one, and nothing else is kept over the loop.
    static constexpr bool kComputed = Schedule::kComputed;

    __device__ __forceinline__ bool start() {
        const bool more = schedule_.ahead(tile_);
        if constexpr (!kComputed) {
            if constexpr (kStages == 2) another_ = more && schedule_.ahead(following_);
            block_sync();  // the tile's segments are there
        }
        return more;
    }

    // Whether there is a following tile.
    __device__ __forceinline__ bool look_ahead() {
        if constexpr (kComputed) return schedule_.step(tile_, following_);
        else return another_;
    }

    __device__ __forceinline__ bool advance() {
        const bool more = look_ahead();
        tile_ = following_;
        if constexpr (!kComputed && kStages == 2) another_ = further_, following_ = after_;
        return more;
    }

    Schedule& schedule_;
    Tile tile_, following_, after_;            // this one, and those ahead
    bool another_ = false, further_ = false;  // whether they are there
};
