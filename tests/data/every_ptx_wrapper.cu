// Every wrapper of kernels_cu/ptx, used once: tests/test_nvrtc.py compiles this for every architecture.
#include <ptx/approximate.cuh>
#include <ptx/barrier.cuh>
#include <ptx/bits.cuh>
#include <ptx/convert.cuh>
#include <ptx/copy_async.cuh>
#include <ptx/ldmatrix.cuh>
#include <ptx/mma.cuh>
#include <ptx/multiply.cuh>
#include <ptx/multiply_high.cuh>
#include <ptx/reduce.cuh>
#include <ptx/shared_memory.cuh>
#include <ptx/shuffle.cuh>
#include <ptx/special_registers.cuh>
#include <ptx/vote.cuh>
#include <types.cuh>

struct WrapperParams {
    float* floats;
    double* doubles;
    u32* words;
    u16* halves;
};

struct WrapperShared {
    alignas(16) u32 words[256];
};

// What sm_80 brought.
__device__ __forceinline__ void tensor_cores(const WrapperParams& params, WrapperShared& shared, u32 thread) {
#if __CUDA_ARCH__ >= 800
    u32 a[4], b[4];
    float d[4] = {};
    copy_async_16(&shared.words[thread * 4], &params.words[thread * 4], params.halves[0]);
    copy_async_8(&shared.words[thread * 4], &params.words[thread * 4], params.halves[1]);
    copy_async_4(&shared.words[thread * 4 + 2], &params.words[thread * 4 + 2], params.halves[2]);
    copy_async_commit();
    copy_async_wait<0>();
    warp_sync();
    load_matrices(a, &shared.words[thread * 4]);
    load_matrices_transposed(b, &shared.words[thread * 4]);
    mma_f16(d[0], d[1], d[2], d[3], a, b[0], b[1]);
    mma_bf16(d[0], d[1], d[2], d[3], a, b[0], b[1]);
    mma_tf32(d[0], d[1], d[2], d[3], a, b[2], b[3]);
    params.words[thread] = pack_f16(d[0], d[1]) ^ pack_bf16(d[2], d[3]);
#endif
}

extern "C" __global__ void __launch_bounds__(64) every_ptx_wrapper(const __grid_constant__ WrapperParams params) {
    WrapperShared& shared = shared_memory<WrapperShared>();
    const u32 thread = thread_index();
    const u32 place = block_index() * 64 + thread;

    shared.words[thread] = multiply_high(params.words[place], block_count());
    block_sync();
    const u32 word = *reinterpret_cast<const u32*>(shared_pointer(shared_address(&shared.words[thread ^ 1])));
    warp_sync();

    params.words[place] = shuffle_xor(word, 1) + thread_index_anew();
    params.floats[place + 3] = float_of_bits(word);
    params.words[place + 3] = bits_of_float(exp2_approximate(params.floats[place]));
    params.floats[place] = shuffle_xor(from_f16(params.halves[place]) + from_bf16(params.halves[place + 1]), 2);
    params.doubles[place] = shuffle_xor(params.doubles[place], 4);
    params.halves[place] = to_f16(params.floats[place + 1]) ^ to_bf16(params.floats[place + 2]);
    params.words[place + 1] = warp_ballot(word == 1) + population_count(word) + leading_zeros(word);
    params.words[place + 2] = static_cast<u32>(bits_of_double(params.doubles[place]) >> 32);
    if (warp_any(word == 0)) params.floats[place] = reciprocal_approximate(multiply_rounded(params.floats[place + 1], 3));
    float quads[4];
    load_quads(quads, params.floats + block_index() * kQuads, thread % 32);
    add_quads(params.floats, thread % 32, quads);
    block_sync();
    tensor_cores(params, shared, thread);
}
