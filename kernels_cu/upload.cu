// Write words that travel as kernel parameters: small host arrays reach the device in stream order, without a copy that
// would need pinned memory or a host array that outlives a CUDA graph.
#include <elementwise.cuh>

constexpr int kUploadWords = 960;  // parameters may take 4 KiB

struct UploadParams {
    u32* target;
    i32 words;
    u32 data[kUploadWords];
};

template <int kThreads>
__device__ __forceinline__ void upload(const UploadParams& params) {
    for_each<kThreads>(params.words, [&](i64 n) { params.target[n] = params.data[n]; });
}
