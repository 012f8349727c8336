// Sums over many tiles that keep what rounding loses: without it 256 tiles cost float32 three bits.
#pragma once

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

    __device__ __forceinline__ void multiply(Acc factor) {
        sum *= factor;
        lost *= factor;
    }

    __device__ __forceinline__ Acc value() const {
        const Acc total = sum + lost;
        return total == total ? total : sum;
    }
};
