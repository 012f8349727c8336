// A thread's part of a tile of scores. `Tiles` says which scores those are: local_row(r), local_column(c).
#pragma once

#include <types.cuh>

template <class Tiles>
struct Fragment {
    using Acc = typename Tiles::Acc;
    static constexpr int kRows = Tiles::kRows;
    static constexpr int kColumns = Tiles::kColumns;
    Acc at[kRows][kColumns];
};

// A bit for each score of a fragment.
template <class Tiles>
struct Bits {
    static constexpr int kWords = (Tiles::kRows * Tiles::kColumns + 31) / 32;
    u32 word[kWords];

    __device__ bool operator()(int r, int c) const { return word[place(r, c) / 32] >> (place(r, c) % 32) & 1u; }
    __device__ void set(int r, int c, bool value) {
        u32& own = word[place(r, c) / 32];
        const u32 bit = 1u << (place(r, c) % 32);
        own = value ? own | bit : own & ~bit;
    }
    // A bit for each column of row r.
    __device__ u32 row(int r) const {
        static_assert(Tiles::kColumns <= 32 && 32 % Tiles::kColumns == 0, "a row does not cross words");
        return word[place(r, 0) / 32] >> (place(r, 0) % 32) & (Tiles::kColumns == 32 ? ~0u : (1u << Tiles::kColumns % 32) - 1);
    }
    __device__ void add(const Bits& others) {
#pragma unroll
        for (int n = 0; n < kWords; ++n) word[n] |= others.word[n];
    }
    __device__ static constexpr int place(int r, int c) { return r * Tiles::kColumns + c; }
};

template <class Tiles>
__device__ __forceinline__ Bits<Tiles> equal_bits(bool value) {
    Bits<Tiles> bits;
#pragma unroll
    for (u32& word : bits.word) word = value ? 0xffffffffu : 0;
    return bits;
}

template <class Tiles>
__device__ __forceinline__ void keep_only(Fragment<Tiles>& fragment, const Bits<Tiles>& kept) {
#pragma unroll
    for (int r = 0; r < Tiles::kRows; ++r)
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c) fragment.at[r][c] = kept(r, c) ? fragment.at[r][c] : 0;
}

// Coordinates of a thread's scores: the owner is the query, or, transposed, the key.
template <class Tiles, class Tile, bool kTransposed_>
struct Place {
    static constexpr bool kTransposed = kTransposed_;
    i32 first_row;
    const Tile& tile;

    __device__ static int local_row(int r) { return Tiles::local_row(r); }
    __device__ static int local_column(int c) { return Tiles::local_column(c); }
    __device__ i32 owner(int r) const { return first_row + local_row(r); }
    __device__ i32 walked(int c) const { return tile.at(local_column(c)); }
    __device__ i32 query(int r, int c) const { return kTransposed ? walked(c) : owner(r); }
    __device__ i32 key(int r, int c) const { return kTransposed ? owner(r) : walked(c); }
};
