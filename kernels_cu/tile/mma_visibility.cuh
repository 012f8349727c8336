// Which of a lane's scores are visible by the schedule: 16 positions at a time, of which a lane holds four.
#pragma once

#include <tile/mma_tile.cuh>

template <class Tiles, class Schedule, class Tile, class Place>
__device__ __forceinline__ Bits<Tiles> visible_patches(const Schedule& schedule, const Tile& tile, const Place& place) {
    Bits<Tiles> visible = equal_bits<Tiles>(false);
    const u32 thread = thread_index_anew();
    const int shift = 2 * (thread % Tiles::kLanes);
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r) {
        const i32 owner = place.first_row + Tiles::local_row(r, thread);
        const auto span = schedule.span(owner);
#pragma unroll
        for (int s = 0; s < Tiles::kWalk / kSegment; ++s) {
            // Positions 2 t, 2 t + 1 and those 8 further on are columns 4 s to 4 s + 3.
            const u32 segment = schedule.visible_segment(tile, owner, span, s) >> shift;
            const u32 own = (segment & 3u) | (segment >> 6 & 12u);
            const int at = Bits<Tiles>::place(r, 4 * s);
            visible.word[at / 32] |= own << (at % 32);
        }
    }
    return visible;
}

template <class Tiles>
__device__ __forceinline__ void hide(Fragment<Tiles>& scores, const Bits<Tiles>& visible) {
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) scores.at[r][c] = visible(r, c) ? scores.at[r][c] : -infinity<float>();
}
