// Every wrapper of kernels_cu/ptx, used once: tests/test_nvrtc.py compiles this for every architecture.
#include <ptx/barrier.cuh>
#include <ptx/convert.cuh>
#include <ptx/multiply_high.cuh>
#include <ptx/shared_memory.cuh>
#include <ptx/shuffle.cuh>
#include <ptx/special_registers.cuh>
#include <types.cuh>

struct WrapperParams {
    float* floats;
    double* doubles;
    u32* words;
    u16* halves;
};

struct WrapperShared {
    u32 words[64];
};

extern "C" __global__ void __launch_bounds__(64) every_ptx_wrapper(const __grid_constant__ WrapperParams params) {
    WrapperShared& shared = shared_memory<WrapperShared>();
    const u32 thread = thread_index();
    const u32 place = block_index() * 64 + thread;

    shared.words[thread] = multiply_high(params.words[place], block_count());
    block_sync();
    const u32 word = shared.words[thread ^ 1];
    warp_sync();

    params.words[place] = shuffle_xor(word, 1);
    params.floats[place + 3] = float_of_bits(word);
    params.floats[place] = shuffle_xor(from_f16(params.halves[place]) + from_bf16(params.halves[place + 1]), 2);
    params.doubles[place] = shuffle_xor(params.doubles[place], 4);
    params.halves[place] = to_f16(params.floats[place + 1]) ^ to_bf16(params.floats[place + 2]);
}
