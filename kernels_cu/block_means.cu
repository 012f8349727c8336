// Means of rows over blocks of a sequence, the last of which may be ragged.
#include <elementwise.cuh>
#include <tile/sum.cuh>

struct BlockMeansParams {
    Operand source, target;  // a row of the target is a block
    Extents extents;         // of the target
    i32 rows;                // of the source
    i32 block;
};

template <class Acc, int kThreads>
__device__ __forceinline__ void block_means(const BlockMeansParams& params) {
    for_each<kThreads>(count(params.extents), [&](i64 n) {
        const Element at = element(params.extents, n);
        const i32 first = at.row * params.block, end = min(first + params.block, params.rows);
        const u8* column = base(params.source, at.work, at.work.head) + at.column * params.source.column;
        CompensatedSum<Acc> sum = {};
        for (i32 row = first; row < end; ++row) sum.add(load<Acc>(params.source, column + row * params.source.row));
        store(params.target, address(params.target, at), sum.value() / (end - first));
    });
}
