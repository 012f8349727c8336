// Which of a thread's scores are visible by the schedule alone. Where a tile is FULL, rows beyond the owner's length are
// left visible: they are zeros, and nobody stores them. A hook that reads memory for each score (kHides) never sees such a
// tile: there every score is looked at, rows beyond the length included.
#pragma once

#include <tile/fma_tile.cuh>

template <class Tiles, class Schedule, class Tile, class Place>
__device__ __forceinline__ Bits<Tiles> visible_bits(const Schedule& schedule, const Tile& tile, const Place& place) {
    Bits<Tiles> visible = equal_bits<Tiles>(false);
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c)
            visible.set(r, c, schedule.visible(tile, place.owner(r), place.local_column(c)));
    return visible;
}
