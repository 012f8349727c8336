// Elements in memory: any dtype at any stride, read into and written from the accumulation type.
#pragma once

#include <params.cuh>
#include <ptx/convert.cuh>

template <class T>
__device__ __forceinline__ T read(const u8* address, bool unaligned) {
    if (!unaligned) return *reinterpret_cast<const T*>(address);
    T value;
    u8* bytes = reinterpret_cast<u8*>(&value);
    for (unsigned n = 0; n < sizeof(T); ++n) bytes[n] = address[n];
    return value;
}

template <class T>
__device__ __forceinline__ void write(u8* address, T value, bool unaligned) {
    if (!unaligned) {
        *reinterpret_cast<T*>(address) = value;
        return;
    }
    const u8* bytes = reinterpret_cast<const u8*>(&value);
    for (unsigned n = 0; n < sizeof(T); ++n) address[n] = bytes[n];
}

// Every thread of a block takes the same branch: the dtype is the operand's, not the element's.
template <class Acc>
__device__ __forceinline__ Acc load(const Operand& operand, const u8* address) {
    const bool unaligned = operand.unaligned;
    switch (operand.dtype) {
        case kFloat16: return static_cast<Acc>(from_f16(read<u16>(address, unaligned)));
        case kBFloat16: return static_cast<Acc>(from_bf16(read<u16>(address, unaligned)));
        case kFloat32: return static_cast<Acc>(read<float>(address, unaligned));
        default: return static_cast<Acc>(read<double>(address, unaligned));
    }
}

template <class Acc>
__device__ __forceinline__ void store(const Operand& operand, u8* address, Acc value) {
    const bool unaligned = operand.unaligned;
    switch (operand.dtype) {
        case kFloat16: return write(address, to_f16(static_cast<float>(value)), unaligned);
        case kBFloat16: return write(address, to_bf16(static_cast<float>(value)), unaligned);
        case kFloat32: return write(address, static_cast<float>(value), unaligned);
        default: return write(address, static_cast<double>(value), unaligned);
    }
}

__device__ __forceinline__ i64 load_index(const Operand& operand, const u8* address) {
    if (operand.dtype == kInt32) return read<i32>(address, operand.unaligned);
    return read<i64>(address, operand.unaligned);
}

__device__ __forceinline__ bool given(const Operand& operand) { return operand.data != nullptr; }

// The bits of an element at an aligned address, and what they stand for: apart, so that many loads can be in flight before
// the first is used. Arrays that are summed in float hold 16 or 32 bits, others float64.
template <class Acc>
struct Raw {
    u32 bits;

    __device__ __forceinline__ void read(const Operand& operand, const u8* address) {
        if (operand.dtype == kFloat32) bits = *reinterpret_cast<const u32*>(address);
        else bits = *reinterpret_cast<const u16*>(address);
    }
    __device__ __forceinline__ Acc value(const Operand& operand) const {
        if (operand.dtype == kFloat32) return float_of_bits(bits);
        return operand.dtype == kFloat16 ? from_f16(static_cast<u16>(bits)) : from_bf16(static_cast<u16>(bits));
    }
};

template <>
struct Raw<double> {
    double bits;

    __device__ __forceinline__ void read(const Operand&, const u8* address) { bits = *reinterpret_cast<const double*>(address); }
    __device__ __forceinline__ double value(const Operand&) const { return bits; }
};

constexpr int kPiece = 16;  // bytes of a copy

struct alignas(16) Piece {
    u32 words[4];
};

// Whether rows from `base` on consist of aligned pieces. All threads of a block agree.
template <int kItem>
__device__ __forceinline__ bool in_pieces(const Operand& operand, const u8* base, i32 columns) {
    const u64 low_bits = reinterpret_cast<u64>(base) | static_cast<u64>(operand.row) | static_cast<u64>(columns) * kItem;
    return low_bits % kPiece == 0 && operand.column == kItem;
}
