// Bit patterns of the transposed mask: pattern by pattern, rows and columns exchanged.
#include <lists/params.cuh>
#include <lists/warps.cuh>

template <int kThreads>
__device__ __forceinline__ void transpose_bits(const ListParams& params) {
    const ListSide &own = params.own, &other = params.other;
    const i64 listed = own.partial_indptr[all_rows(params)];
    for_each_by_warp<kThreads>(min(listed, params.partial_capacity), [&](i64 id) {
        const u32* pattern = other.bits + id * other.row_size * other.words;
        u32* transposed = own.bits + id * own.row_size * own.words;
        for (i32 n = 0; n < own.words; ++n) {
            const i32 from = 32 * n + lane_index();
            for (i32 m = 0; m < other.words; ++m) {
                const u32 word = from < other.row_size ? pattern[from * other.words + m] : 0;
                for (i32 r = 0; r < 32 && 32 * m + r < own.row_size; ++r) {
                    const u32 column = warp_ballot(word >> r & 1u);
                    if (lane_index() == r) transposed[(32 * m + r) * own.words + n] = column;
                }
            }
        }
    });
}
