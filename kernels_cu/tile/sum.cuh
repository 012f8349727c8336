// Sums over many tiles. In float32 they keep what rounding loses: without it 256 tiles cost three bits.
#pragma once

#include <tile/math.cuh>

// Knuth's two-sum: `lost` is the exact error of each addition, summed. Infinite sums stay infinite.
template <class Acc>
struct CompensatedSum {
    Acc sum, lost;

    __device__ __forceinline__ void add(Acc value) {
        const Acc total = sum + value;
        const Acc added = total - sum;
        lost += (sum - (total - added)) + (value - added);
        sum = total;
    }

    __device__ __forceinline__ void add(const CompensatedSum& other) {
        add(other.sum);
        lost += other.lost;
    }

    // Of products too that are not rounded themselves.
    __device__ __forceinline__ void add_product(Acc a, Acc b) {
        const Acc total = multiply_add(a, b, sum);
        const Acc added = total - sum;
        lost += (sum - (total - added)) + multiply_add(a, b, -added);
        sum = total;
    }

    __device__ __forceinline__ void multiply(Acc factor) {
        sum *= factor;
        lost *= factor;
    }

    __device__ __forceinline__ Acc value() const {
        const Acc total = sum + lost;
        return total == total ? total : sum;
    }
};

// For sums that are rounded to fewer bits afterwards.
template <class Acc>
struct PlainSum {
    Acc sum;

    __device__ __forceinline__ void add(Acc value) { sum += value; }
    __device__ __forceinline__ void multiply(Acc factor) { sum *= factor; }
    __device__ __forceinline__ Acc value() const { return sum; }
};

// float64 has bits to spare, and registers to save.
template <>
struct CompensatedSum<double> {
    double sum;

    __device__ __forceinline__ void add(double value) { sum += value; }
    __device__ __forceinline__ void add(const CompensatedSum& other) { sum += other.sum; }
    __device__ __forceinline__ void add_product(double a, double b) { sum = multiply_add(a, b, sum); }
    __device__ __forceinline__ void multiply(double factor) { sum *= factor; }
    __device__ __forceinline__ double value() const { return sum; }
};
