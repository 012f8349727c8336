// Fill an array with a value for each head: results of rows that lie in no sequence, which no tile writes.
#include <elementwise.cuh>

struct FillParams {
    Operand target;
    Operand values;  // by head; not given: `value`
    double value;
    Extents extents;
};

template <int kThreads>
__device__ __forceinline__ void fill(const FillParams& params) {
    for_each<kThreads>(count(params.extents), [&](i64 n) {
        const Element at = element(params.extents, n);
        const double value = given(params.values)
                                 ? load<double>(params.values, params.values.data + at.work.head * params.values.head)
                                 : params.value;
        store(params.target, address(params.target, at), value);
    });
}
