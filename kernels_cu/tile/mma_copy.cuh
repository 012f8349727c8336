// Rows of an operand to swizzled shared memory, as they are: by cp.async of 16 bytes where addresses allow, of 8 or 4 where
// those do, element by element otherwise.
#pragma once

#include <ptx/barrier.cuh>
#include <ptx/copy_async.cuh>
#include <schedule/rows.cuh>
#include <tile/mma_tile.cuh>

// Which pieces of kCount rows a thread copies: those at `byte`, byte + kAcross, ... of rows own_row, own_row + kStep, ...
template <class Tiles, int kCount, int kBytes>
struct OwnPieces {
    static constexpr int kAcross = kBytes < Tiles::kThreads * kPiece ? kBytes : Tiles::kThreads * kPiece;  // bytes
    static constexpr int kEach = kAcross / kPiece;                                                     // threads of a row
    static constexpr int kStep = Tiles::kThreads / kEach;
    static constexpr bool kAll = Tiles::kThreads % kEach == 0;  // otherwise some threads rest
    int own_row, byte;

    __device__ __forceinline__ OwnPieces() {
        const u32 thread = thread_index_anew();
        own_row = thread / kEach;
        byte = thread % kEach * kPiece;
    }
    __device__ __forceinline__ bool has_row(int r) const {
        return (kAll || own_row < kStep) && (kCount % kStep == 0 || own_row + r < kCount);
    }
    __device__ __forceinline__ bool has_byte(int across) const {
        return kBytes % kAcross == 0 || byte + across < kBytes;
    }
};

// Elements one by one, for rows at any address: right, not fast.
template <class Tiles, int kCount, int kBytes, int kPitch, bool kRounds, class At>
__device__ __forceinline__ void gather_rows(
    u8* to, const Operand& operand, const u8* base, const Span& there, const At& at, i32 first, i32 columns) {
    constexpr int kItem = Tiles::Kind::kItem, kEach = 4 / kItem;  // elements of a word
#pragma unroll 1
    for (int place = thread_index_anew(); place < kCount * kBytes / 4; place += Tiles::kThreads) {
        const int r = place / (kBytes / 4), byte = place % (kBytes / 4) * 4;
        const i32 row = at(r);
        u32 word = 0;
#pragma unroll
        for (int n = 0; n < kEach; ++n) {
            const i32 column = first + byte / kItem + n;
            if (!there.has(row) || column >= columns) continue;
            const u8* element = base + row * operand.row + column * operand.column;
            if constexpr (kItem == 2) word |= static_cast<u32>(read<u16>(element, operand.unaligned)) << (16 * n);
            else word = read<u32>(element, operand.unaligned);
        }
        if constexpr (kRounds) word = Tiles::Kind::rounded_any(word);
        *reinterpret_cast<u32*>(to + swizzled<kPitch>(r, byte)) = word;
    }
}

constexpr int kHalf = 8;  // bytes of half a piece

// Bytes that cp.async may bring at once where rows are not in_pieces: 8, 4, or 0 where elements have to be gathered. All
// threads of a block agree.
template <int kItem>
__device__ __forceinline__ int half_bytes(const Operand& operand, const u8* base) {
    const u32 low_bits = static_cast<u32>(reinterpret_cast<u64>(base)) | static_cast<u32>(operand.row);
    if (operand.column != kItem || low_bits % 4 != 0) return 0;
    return low_bits % kHalf == 0 ? kHalf : 4;
}

// Rows by halves of pieces, in one copy each or in two. Few instructions before speed: the way of pieces is beside it.
template <class Tiles, int kCount, int kBytes, int kPitch, class At>
__device__ __forceinline__ void copy_halves(
    u8* to, const Operand& operand, const u8* base, const Span& there, const At& at, i32 first, i32 columns, bool whole) {
    constexpr int kItem = Tiles::Kind::kItem, kEach = kBytes / kHalf;
#pragma unroll 1
    for (int place = thread_index_anew(); place < kCount * kEach; place += Tiles::kThreads) {
        const int r = place / kEach, byte = place % kEach * kHalf;
        const i32 row = at(r);
        const i32 bytes = there.has(row) ? max((columns - first) * kItem - byte, 0) : 0;
        const u8* source = base + row * operand.row + first * kItem + byte;
        u8* own = to + swizzled<kPitch>(r, byte);
        if (whole) {
            copy_async_8(own, source, min(bytes, kHalf));
        } else {
            copy_async_4(own, source, min(bytes, 4));
            copy_async_4(own + 4, source + 4, max(min(bytes, kHalf) - 4, 0));
        }
    }
}

// kCount rows, `at(r)` telling their coordinates (neighbours of at(0) where kRun), of columns [first, first + kBytes / kItem).
// Zeros for rows that are not there, and for columns beyond `columns`. The asynchronous part is not committed, and not
// rounded: round_rows does that. A barrier comes before: shared memory may be in use.
template <class Tiles, int kCount, int kBytes, int kPitch, bool kRounds, bool kRun, class At>
__device__ __forceinline__ void copy_rows(
    u8* to, const Operand& operand, const u8* base, const Span& there, const At& at, i32 first, i32 columns) {
    constexpr int kItem = Tiles::Kind::kItem;
    using Own = OwnPieces<Tiles, kCount, kBytes>;
    if (!in_pieces<kItem>(operand, base, columns)) {
        // What is rounded stays gathered: to look for it here, too, takes TF32's loops moves and branches.
        if constexpr (!Tiles::Kind::kRounds)
            if (const int bytes = half_bytes<kItem>(operand, base))
                return copy_halves<Tiles, kCount, kBytes, kPitch>(to, operand, base, there, at, first, columns, bytes == kHalf);
        return gather_rows<Tiles, kCount, kBytes, kPitch, kRounds>(to, operand, base, there, at, first, columns);
    }
    const Own own;
    const i32 bytes = (columns - first) * kItem - own.byte;
    const u8* column = base + first * kItem + own.byte;
    const u8* run = column + at(own.own_row) * operand.row;
#pragma unroll
    for (int r = 0; r < kCount; r += Own::kStep) {
        if (!own.has_row(r)) break;
        const i32 row = kRun ? at(own.own_row) + r : at(own.own_row + r);
        const bool inside = there.has(row);
        const u8* source = kRun ? run : column + row * operand.row;
#pragma unroll
        for (int across = 0; across < kBytes; across += Own::kAcross) {
            if (!own.has_byte(across)) break;
            // Where nothing is there nothing is read, whatever the address.
            copy_async_16(to + swizzled<kPitch>(own.own_row + r, own.byte + across), source + across,
                          inside && across < bytes ? kPiece : 0);
        }
        run += Own::kStep * operand.row;
    }
}

// What the thread copied, rounded to the operands of a product. The thread has waited for it, others not yet.
template <class Tiles, int kCount, int kBytes, int kPitch>
__device__ __forceinline__ void round_rows(u8* rows, const Operand& operand, const u8* base, i32 columns) {
    using Own = OwnPieces<Tiles, kCount, kBytes>;
    if (!in_pieces<Tiles::Kind::kItem>(operand, base, columns)) return;  // gathered ones are rounded
    const Own own;
#pragma unroll
    for (int r = 0; r < kCount; r += Own::kStep) {
        if (!own.has_row(r)) break;
#pragma unroll
        for (int across = 0; across < kBytes; across += Own::kAcross) {
            if (!own.has_byte(across)) break;
            Piece* piece = reinterpret_cast<Piece*>(rows + swizzled<kPitch>(own.own_row + r, own.byte + across));
            Piece value = *piece;
            for (u32& word : value.words) word = Tiles::Kind::rounded_any(word);
            *piece = value;
        }
    }
}

template <class Tiles, class Tile>
__device__ __forceinline__ void copy_keys(
    u8* to, const Operand& k, const u8* base, const Span& there, const Tile& tile, i32 head_dim) {
    copy_rows<Tiles, Tiles::kWalk, Tiles::kHeadBytes, Tiles::kHeadPitch, Tiles::Kind::kRounds, Tile::kRun>(
        to, k, base, there, [&](int n) { return tile.at(n); }, 0, head_dim);
}

template <class Tiles, class Tile>
__device__ __forceinline__ void copy_values(
    u8* to, const Operand& v, const u8* base, const Span& there, const Tile& tile, i32 first, i32 columns) {
    copy_rows<Tiles, Tiles::kWalk, Tiles::kVBytes, Tiles::kVPitch, Tiles::Kind::kRounds, Tile::kRun>(
        to, v, base, there, [&](int n) { return tile.at(n); }, first, columns);
}

template <class Tiles>
__device__ __forceinline__ void round_keys(u8* keys, const Operand& k, const u8* base, i32 head_dim) {
    if constexpr (Tiles::Kind::kRounds)
        round_rows<Tiles, Tiles::kWalk, Tiles::kHeadBytes, Tiles::kHeadPitch>(keys, k, base, head_dim);
}

template <class Tiles>
__device__ __forceinline__ void round_values(u8* values, const Operand& v, const u8* base, i32 columns) {
    if constexpr (Tiles::Kind::kRounds)
        round_rows<Tiles, Tiles::kWalk, Tiles::kVBytes, Tiles::kVPitch>(values, v, base, columns);
}

// The tile's rows of each of its heads; `q` are those of the first one, `first_row` is the tile's.
template <class Tiles>
__device__ __forceinline__ void copy_queries(u8* to, const Rows& q, i32 first_row, i32 head_dim) {
#pragma unroll 1
    for (int head = 0; head < Tiles::kHeads; ++head)
        copy_rows<Tiles, Tiles::kHeadRows, Tiles::kHeadBytes, Tiles::kHeadPitch, false, true>(
            to + head * (Tiles::kHeadRows * Tiles::kHeadPitch), q.operand, q.base + head * q.operand.head, {0, q.length},
            [&](int r) { return first_row + r; }, 0, head_dim);
}

// q = -q where scale is negative, and rounded where operands are. Waits for the copies, which are committed.
template <class Tiles>
__device__ __forceinline__ void prepare_queries(u8* q, bool negate) {
    if (!negate && !Tiles::Kind::kRounds) return;
    copy_async_wait<0>();
    block_sync();
#pragma unroll 1
    for (int place = thread_index(); place < Tiles::kOwner * (Tiles::kHeadBytes / 4); place += Tiles::kThreads) {
        const int r = place / (Tiles::kHeadBytes / 4), byte = place % (Tiles::kHeadBytes / 4) * 4;
        u32* own = reinterpret_cast<u32*>(q + swizzled<Tiles::kHeadPitch>(r, byte));
        u32 word = negate ? *own ^ Tiles::Kind::kSign : *own;
        if constexpr (Tiles::Kind::kRounds) word = Tiles::Kind::rounded_any(word);
        *own = word;
    }
}
