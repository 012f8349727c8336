// Dropout by counters: the scheme of README.md, "Dropout". The mask is a pure function of seed, batch, head, row and column.
#pragma once

#include <ptx/multiply_high.cuh>
#include <score/hooks.cuh>

struct Words {
    u32 at[4];
};

// Philox4x32 with 7 rounds.
__device__ __forceinline__ Words philox(u32 c0, u32 c1, u32 c2, u32 c3, u32 k0, u32 k1) {
#pragma unroll
    for (int round = 0; round < 7; ++round) {
        const u32 high0 = multiply_high(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = multiply_high(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Which call of its 16 x 16 tile, and of which tile, a row or column takes part in.
__device__ __forceinline__ u32 call_of(u32 x) { return (x >> 4) * 4 + ((x & 7) >> 1); }

template <class Tiles>
struct Dropout : Hook {
    Words stream;
    u32 threshold;

    __device__ Dropout(const AttentionParams& params, const Work& work, i32 head, const Sequence& sequence)
        : Hook(params, work, head, sequence), threshold(params.keep_threshold) {
        const u64 seed = params.seed_words ? params.seed_words[0] : params.seed;
        const u64 offset = params.seed_words ? params.seed_words[1] : params.offset;
        stream = philox(static_cast<u32>(offset), static_cast<u32>(offset >> 32), work.batch, head,
                        static_cast<u32>(seed), static_cast<u32>(seed >> 32));
    }

    template <class Bits, class Place>
    __device__ __forceinline__ void drop(Bits& kept, const Place& place) const {
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c)
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r)
                if (!keeps(place.query(r, c), place.key(r, c))) kept.set(r, c, false);
    }

    __device__ double survivors() const { return threshold == 0 ? 0.0 : 256.0 / threshold; }

private:
    // Neighbouring rows or columns share a call, which the compiler sees only where the loop above is unrolled over them.
    __device__ __forceinline__ bool keeps(u32 i, u32 j) const {
        const Words words = philox(call_of(i), call_of(j), stream.at[2], stream.at[3], stream.at[0], stream.at[1]);
        const u32 word = i & 1 ? (j & 1 ? words.at[3] : words.at[2]) : (j & 1 ? words.at[1] : words.at[0]);
        const u32 byte = 2 * ((i >> 3) & 1) + ((j >> 3) & 1);
        return (word >> (8 * byte) & 255u) < threshold;
    }
};
