// Merge attention over disjoint sets of keys: out = sum of w_p * out_p with w_p = exp(lse_p - lse). A part that saw nothing
// has weight 0 and may hold anything.
#include <elementwise.cuh>
#include <tile/math.cuh>

struct CombineParams {
    const Operand* outs;  // (parts,) in device memory
    const Operand* lses;
    Operand out, lse;
    Extents extents;  // of out; no columns: of one row of lse each
    i32 parts;
};

template <class Acc>
struct LogSum {
    Acc top, total;
};

template <class Acc>
__device__ inline LogSum<Acc> log_sum(const CombineParams& params, const Element& at) {
    LogSum<Acc> result = {-infinity<Acc>(), 0};
    for (i32 p = 0; p < params.parts; ++p)
        result.top = larger(result.top, load<Acc>(params.lses[p], address(params.lses[p], at)));
    if (result.top == -infinity<Acc>()) result.top = 0;
    for (i32 p = 0; p < params.parts; ++p)
        result.total += exponential(load<Acc>(params.lses[p], address(params.lses[p], at)) - result.top);
    return result;
}

template <class Acc, int kThreads>
__device__ __forceinline__ void combine(const CombineParams& params) {
    for_each<kThreads>(count(params.extents), [&](i64 n) {
        const Element at = element(params.extents, n);
        Element row = at;
        row.column = 0;
        const LogSum<Acc> sum = log_sum<Acc>(params, row);
        if (at.column == 0) store(params.lse, address(params.lse, row), sum.top + logarithm(sum.total));
        if (!given(params.out)) return;
        Acc merged = 0;
        for (i32 p = 0; p < params.parts; ++p) {
            const Acc weight = exponential(load<Acc>(params.lses[p], address(params.lses[p], row)) - sum.top);
            if (weight != 0) merged += weight / sum.total * load<Acc>(params.outs[p], address(params.outs[p], at));
        }
        store(params.out, address(params.out, at), merged);
    });
}
