// Undo broadcasting of batch dims: target = source summed over the dims that the target has as 1. In double, in order.
#include <elementwise.cuh>

struct SumBatchParams {
    Operand source, target;
    Extents extents;             // of the target
    i32 summed[kBatchDims];      // extents of the source where the target has 1, else 1
};

template <int kThreads>
__device__ __forceinline__ void sum_batch(const SumBatchParams& params) {
    for_each<kThreads>(count(params.extents), [&](i64 n) {
        const Element at = element(params.extents, n);
        const u8* first = address(params.source, at);
        Work part;
        i32 parts = 1;
        for (int dim = 0; dim < kBatchDims; ++dim) parts *= params.summed[dim];
        double sum = 0;
        for (i32 p = 0; p < parts; ++p) {
            set_batch(part, p, params.summed);
            i64 offset = 0;
            for (int dim = 0; dim < kBatchDims; ++dim) offset += part.batch_index[dim] * params.source.batch[dim];
            sum += load<double>(params.source, first + offset);
        }
        store(params.target, address(params.target, at), sum);
    });
}
