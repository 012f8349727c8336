// More numbers alive than a thread of so large a block has registers.
extern "C" __global__ void __launch_bounds__(1024) spills(double* x, int n) {
    double kept[64];
    #pragma unroll
    for (int i = 0; i < 64; i++) kept[i] = x[i * 1024 + threadIdx.x];
    for (int r = 0; r < n; r++) {
        #pragma unroll
        for (int i = 0; i < 64; i++) kept[i] = kept[i] * kept[(i * 7 + 3) % 64] + x[r];
    }
    #pragma unroll
    for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = kept[i];
}
