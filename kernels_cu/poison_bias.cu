// NaN to all of dbias where a mask had no room for all of its blocks: a sum over rows does not tell which were complete.
#include <elementwise.cuh>
#include <tile/math.cuh>

template <int kThreads>
__device__ __forceinline__ void poison_bias(const AttentionParams& params) {
    const BlockLists& lists = params.lists;
    const i64 rows = static_cast<i64>(lists.batch) * lists.heads * lists.rows;
    if (lists.full_indptr[rows] <= lists.capacity && lists.partial_indptr[rows] <= lists.partial_capacity) return;
    Extents extents = {{}, params.bias_heads, params.bias_rows, params.bias_columns};
    for (int dim = 0; dim < kBatchDims; ++dim) extents.batch[dim] = params.bias_batch_extent[dim];
    for_each<kThreads>(count(extents), [&](i64 n) {
        store(params.dbias, address(params.dbias, element(extents, n)), static_cast<double>(float_of_bits(0x7fc00000u)));
    });
}
