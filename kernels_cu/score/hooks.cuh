// What a score goes through, as hooks on fragments. A feature is a class with some of Hook's members; Hooks composes
// those that a configuration names, in the order of the score formula. Kernels call Hooks and name no feature.
#pragma once

#include <schedule/sequence.cuh>
#include <tile/fragment.cuh>
#include <tile/math.cuh>

// An array with an element for each score, `start` being the first of this head: where those of a thread's scores lie.
template <class Tiles, class Place, bool kPatches = Tiles::kPatches>
struct ScoreElements {
    const Operand& operand;
    const u8* start;
    const Place& place;

    __device__ __forceinline__ const u8* row(int) const { return start; }
    __device__ __forceinline__ const u8* at(const u8* row, int r, int c) const {
        return row + place.query(r, c) * operand.row + place.key(r, c) * operand.column;
    }
};

// In patches the walked positions of columns 4 s to 4 s + 3 are neighbours of the first, whatever the row.
template <class Tiles, class Place>
struct ScoreElements<Tiles, Place, true> {
    const u8* start;
    const Place& place;
    const i64 owner_step, walked_step;
    i64 walked[Tiles::kColumns / 4];

    __device__ __forceinline__ ScoreElements(const Operand& operand, const u8* start_, const Place& place_)
        : start(start_), place(place_), owner_step(Place::kTransposed ? operand.column : operand.row),
          walked_step(Place::kTransposed ? operand.row : operand.column) {
#pragma unroll
        for (int s = 0; s < Tiles::kColumns / 4; ++s) walked[s] = place.walked(4 * s) * walked_step;
    }
    __device__ __forceinline__ const u8* row(int r) const { return start + place.owner(r) * owner_step; }
    __device__ __forceinline__ const u8* at(const u8* row, int, int c) const {
        return row + walked[c / 4] + (c % 2 + c % 4 / 2 * 8) * walked_step;
    }
};

struct Hook {
    static constexpr bool kHides = false;  // whether it can hide a score of a tile that the schedule calls FULL

    __device__ Hook(const AttentionParams&, const Work&, i32, const Sequence&) {}

    // Clear the bits of the scores that it hides by their coordinates.
    template <class Bits, class Place>
    __device__ void hide(Bits&, const Place&) const {}

    // Turn products into scores in units of log2, and clear the bits of those that it hides by their value. The score is
    // fragment * factor, whose sign is the scale's: who multiplies later may leave that to a multiply-add that comes anyway.
    template <class Fragment, class Bits, class Place>
    __device__ void scores(Fragment&, Bits&, const Place&, typename Fragment::Acc&) {}

    // Turn gradients of scores into gradients of products q . k, but for their factor `scale` where Tiles::kLeavesScale.
    template <class Fragment>
    __device__ void gradient(Fragment&) const {}

    // Clear the bits of the weights that are dropped.
    template <class Bits, class Place>
    __device__ void drop(Bits&, const Place&) const {}

    // What the weights that remain are multiplied by.
    __device__ i32 survivors() const { return 1; }
};

template <class... Features>
struct Hooks : Features... {
    static constexpr bool kHides = (Features::kHides || ...);

    // `head` is the query's.
    __device__ Hooks(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Features(params, work, head, sequence)... {}

    template <class Bits, class Place>
    __device__ __forceinline__ void hide(Bits& visible, const Place& place) const {
        (Features::hide(visible, place), ...);
    }

    // Returns the factor that is left to the caller: 1 unless Tiles::kFolds.
    template <class Fragment, class Bits, class Place>
    __device__ __forceinline__ typename Fragment::Acc scores(Fragment& fragment, Bits& visible, const Place& place) {
        typename Fragment::Acc factor = 1;
        (Features::scores(fragment, visible, place, factor), ...);
        return factor;
    }

    template <class Fragment>
    __device__ __forceinline__ void gradient(Fragment& fragment) const {
        (Features::gradient(fragment), ...);
    }

    template <class Bits, class Place>
    __device__ __forceinline__ void drop(Bits& kept, const Place& place) const {
        (Features::drop(kept, place), ...);
    }

    __device__ __forceinline__ auto survivors() const { return (Features::survivors() * ...); }
};
