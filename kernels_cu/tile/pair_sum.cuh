// Two neighbours of a result, as a lane of tensor cores holds them, summed over many tiles.
#pragma once

#include <ptx/convert.cuh>
#include <tile/sum.cuh>

// For results that are rounded to fewer bits afterwards: tensor cores add to them.
struct PlainPair {
    float low, high;

    __device__ __forceinline__ void multiply(float factor) { low *= factor, high *= factor; }
    __device__ __forceinline__ float low_value() const { return low; }
    __device__ __forceinline__ float high_value() const { return high; }
};

// For float32. What additions lose is a correction of the last bits: eight bits of it do, and two share a register.
struct CompensatedPair {
    float low, high;
    u32 lost;

    __device__ __forceinline__ void add(float to_low, float to_high) {
        CompensatedSum<float> first = {low, lost_low()}, second = {high, lost_high()};
        first.add(to_low);
        second.add(to_high);
        low = first.sum, high = second.sum;
        lost = pack_bf16(first.lost, second.lost);
    }
    __device__ __forceinline__ void multiply(float factor) {
        low *= factor, high *= factor;
        lost = pack_bf16(lost_low() * factor, lost_high() * factor);
    }
    __device__ __forceinline__ float low_value() const { return CompensatedSum<float>{low, lost_low()}.value(); }
    __device__ __forceinline__ float high_value() const { return CompensatedSum<float>{high, lost_high()}.value(); }

private:
    __device__ __forceinline__ float lost_low() const { return float_of_bits(lost << 16); }
    __device__ __forceinline__ float lost_high() const { return float_of_bits(lost & 0xffff0000u); }
};

template <bool kPrecise>
struct SumsFor {
    using Pair = PlainPair;
    using Sum = PlainSum<float>;
};

template <>
struct SumsFor<true> {
    using Pair = CompensatedPair;
    using Sum = CompensatedSum<float>;
};
