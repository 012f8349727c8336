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
    using Acc = typename Tiles::Acc;
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
        if constexpr (Tiles::kPatches) drop_patches(kept, place);
        else drop_each(kept, place);
    }

    __device__ Acc survivors() const { return threshold == 0 ? Acc{0} : 256 / static_cast<Acc>(threshold); }

private:
    // Rows 2 m and 2 m + 1 of a thread are 8 apart, and so are its columns 4 p, 4 p + 1 and 4 p + 2, 4 p + 3: the scores of
    // one call, of which it takes two words (README.md, "Which lane needs what"): those of its row, which is a query or,
    // transposed, a key.
    template <class Bits, class Place>
    __device__ __forceinline__ void drop_patches(Bits& kept, const Place& place) const {
        constexpr int kRowStep = Place::kTransposed ? 1 : 2, kColumnStep = 3 - kRowStep;
        const bool odd = place.owner(0) & 1;
#pragma unroll
        for (int m = 0; m < Tiles::kRows; m += 2)
#pragma unroll
            for (int p = 0; p < Tiles::kColumns; p += 4) {
                const Words words = call(place.query(m, p), place.key(m, p));
                const u32 own[2] = {odd ? words.at[kRowStep] : words.at[0],
                                    odd ? words.at[3] : words.at[kColumnStep]};
#pragma unroll
                for (int n = 0; n < 8; ++n) {
                    const int r = n / 4, c = n % 4;
                    if (!keeps(own[c % 2], kRowStep * r + kColumnStep * (c / 2))) kept.set(m + r, p + c, false);
                }
            }
    }

    template <class Bits, class Place>
    __device__ __forceinline__ void drop_each(Bits& kept, const Place& place) const {
#pragma unroll
        for (int c = 0; c < Tiles::kColumns; ++c)
#pragma unroll
            for (int r = 0; r < Tiles::kRows; ++r)
                if (!keeps_score(place.query(r, c), place.key(r, c))) kept.set(r, c, false);
    }

    __device__ __forceinline__ Words call(u32 i, u32 j) const {
        return philox(call_of(i), call_of(j), stream.at[2], stream.at[3], stream.at[0], stream.at[1]);
    }

    // Neighbouring rows or columns share a call, which the compiler sees only where the loop above is unrolled over them.
    __device__ __forceinline__ bool keeps_score(u32 i, u32 j) const {
        const Words words = call(i, j);
        const u32 word = i & 1 ? (j & 1 ? words.at[3] : words.at[2]) : (j & 1 ? words.at[1] : words.at[0]);
        return keeps(word, 2 * ((i >> 3) & 1) + ((j >> 3) & 1));
    }

    __device__ __forceinline__ bool keeps(u32 word, u32 byte) const { return (word >> (8 * byte) & 255u) < threshold; }
};
