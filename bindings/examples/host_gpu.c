/*
 * Attention from C, on a GPU: memory and streams of the CUDA runtime, packed sequences and block masks in device
 * memory, a workspace, a captured graph, two streams.
 *
 *   cc host_gpu.c -o host_gpu $(flashcupy capi --cflags --libs) -I$CUDA/include -L$CUDA/lib64 -lcudart -lm -ldl
 *
 * Exits with 77 where there is no GPU. With several, the calling thread's current device is another than that of the
 * tensors.
 */
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <string.h>

#include "common.h"

enum { GPU = 0, SKIPPED = 77 };

static int elsewhere; /* the current device while flashcupy is called */

static void cuda_must(cudaError_t error, const char *call) {
    if (error == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", call, cudaGetErrorString(error));
    exit(1);
}

#define CUDA(call) cuda_must(call, #call)

/* The driver's current context, which the runtime does not tell. */
static void *current_context(void) {
    static int (*get)(void **);
    void *context = NULL;
    if (!get) {
        void *driver = dlopen("libcuda.so.1", RTLD_NOW), *symbol = driver ? dlsym(driver, "cuCtxGetCurrent") : NULL;
        memcpy(&get, &symbol, sizeof get);
    }
    if (!get || get(&context)) {
        fprintf(stderr, "the driver does not tell its current context\n");
        exit(1);
    }
    return context;
}

static void *before_call(void) {
    CUDA(cudaSetDevice(elsewhere));
    return current_context();
}

static void after_call(void *context, const char *call) {
    int device;
    CUDA(cudaGetDevice(&device));
    if (device != elsewhere || current_context() != context) {
        fprintf(stderr, "%s: left the thread with another device or context\n", call);
        exit(1);
    }
    CUDA(cudaSetDevice(GPU));
}

/* A call of flashcupy that must succeed, and leave the thread as it was. */
#define CALL(call)                                                                                                  \
    do {                                                                                                            \
        void *context_before = before_call();                                                                       \
        MUST(call);                                                                                                 \
        after_call(context_before, #call);                                                                          \
    } while (0)

static void *device_memory(size_t bytes) {
    void *memory;
    CUDA(cudaMalloc(&memory, bytes));
    CUDA(cudaMemset(memory, 0xFF, bytes)); /* NaN, which no result may keep */
    CUDA(cudaDeviceSynchronize());
    return memory;
}

static void *to_device(const void *values, size_t bytes) {
    void *memory = device_memory(bytes);
    CUDA(cudaMemcpy(memory, values, bytes, cudaMemcpyHostToDevice));
    return memory;
}

static flashcupy_tensor on_gpu(void *memory, uint8_t code, uint8_t bits, int32_t ndim, const int64_t *shape) {
    flashcupy_tensor tensor = flashcupy_tensor_of(memory, code, bits, ndim, shape);
    tensor.device.device_type = FLASHCUPY_CUDA_DEVICE;
    tensor.device.device_id = GPU;
    return tensor;
}

/* -------------------------------------------------------------- a call's operands and results, all in device memory */

enum { Q, K, V, DOUT, OUT, LSE, DQ, DK, DV, ARRAYS, INPUTS = OUT };

typedef struct operands {
    int64_t shapes[ARRAYS][3];
    size_t counts[ARRAYS];
    flashcupy_tensor tensors[ARRAYS]; /* point to shapes: where these lie may not change */
    flashcupy_options options;
} operands;

static operands *make(int64_t hq, int64_t hkv, int64_t sq, int64_t sk, int64_t d, int64_t dv) {
    const int64_t shapes[ARRAYS][3] = {{hq, sq, d},  {hkv, sk, d}, {hkv, sk, dv}, {hq, sq, dv}, {hq, sq, dv},
                                       {hq, sq, 1}, {hq, sq, d},  {hkv, sk, d},  {hkv, sk, dv}};
    operands *o = calloc(1, sizeof *o);
    int i;
    if (!o) exit(1);
    memcpy(o->shapes, shapes, sizeof shapes);
    o->options.struct_size = sizeof o->options;
    for (i = 0; i < ARRAYS; ++i) {
        o->counts[i] = (size_t)(shapes[i][0] * shapes[i][1] * shapes[i][2]);
        o->tensors[i] = on_gpu(device_memory(o->counts[i] * sizeof(float)), FLASHCUPY_FLOAT, 32, i == LSE ? 2 : 3,
                               o->shapes[i]);
    }
    return o;
}

static void fill_inputs(operands *o, uint32_t seed, cudaStream_t stream) {
    int i;
    for (i = 0; i < INPUTS; ++i) {
        float *values = malloc(o->counts[i] * sizeof *values);
        if (!values) exit(1);
        fill(values, o->counts[i], seed + (uint32_t)i);
        CUDA(cudaMemcpyAsync(o->tensors[i].data, values, o->counts[i] * sizeof *values, cudaMemcpyHostToDevice,
                             stream));
        CUDA(cudaStreamSynchronize(stream));
        free(values);
    }
}

static void dispose(operands *o) {
    int i;
    for (i = 0; i < ARRAYS; ++i) CUDA(cudaFree(o->tensors[i].data));
    free(o);
}

static flashcupy_status forward(operands *o, cudaStream_t stream) {
    flashcupy_tensor *t = o->tensors;
    return flashcupy_forward(&t[Q], &t[K], &t[V], &t[OUT], &t[LSE], &o->options, stream);
}

static flashcupy_status backward(operands *o, cudaStream_t stream) {
    flashcupy_tensor *t = o->tensors;
    return flashcupy_backward(&t[Q], &t[K], &t[V], &t[OUT], &t[LSE], &t[DOUT], NULL, &t[DQ], &t[DK], &t[DV], NULL, NULL,
                              &o->options, stream);
}

/* Wait for the stream, and compare one array. */
static void compare_array(operands *o, int array, const char *name, const double *expected, size_t count,
                          cudaStream_t stream) {
    float *values = malloc(count * sizeof *values);
    if (!values || count != o->counts[array]) exit(1);
    CUDA(cudaMemcpyAsync(values, o->tensors[array].data, count * sizeof *values, cudaMemcpyDeviceToHost, stream));
    CUDA(cudaStreamSynchronize(stream));
    compare(name, values, expected, count, array <= LSE ? RESULT_BOUND : GRADIENT_BOUND);
    free(values);
}

#define COMPARE_ARRAY(o, array, name, stream)                                                                       \
    compare_array(o, array, #name, name##_expected, COUNT(name##_expected), stream)

#define COMPARE_ALL(o, name, stream)                                                                                \
    (COMPARE_ARRAY(o, OUT, name##_out, stream), COMPARE_ARRAY(o, LSE, name##_lse, stream),                          \
     COMPARE_ARRAY(o, DQ, name##_dq, stream), COMPARE_ARRAY(o, DK, name##_dk, stream),                              \
     COMPARE_ARRAY(o, DV, name##_dv, stream))

/* --------------------------------------------------------------------------------------------------------- cases */

static operands *causal_operands(cudaStream_t stream) {
    operands *o = make(4, 2, 21, 33, 24, 16);
    o->options.causal = FLASHCUPY_BOTTOM_RIGHT;
    fill_inputs(o, 1, stream);
    return o;
}

static void causal(cudaStream_t stream) {
    operands *o = causal_operands(stream);
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    COMPARE_ALL(o, causal, stream);
    dispose(o);
}

/* cu_seqlens in device memory are not read back: max_seqlen tells how long the longest sequence may be. */
static void packed(cudaStream_t stream) {
    static const int32_t starts_q[] = {0, 6, 6, 19}, starts_k[] = {0, 9, 14, 28};
    static const int64_t shape[] = {COUNT(starts_q)};
    operands *o = make(2, 1, 20, 30, 16, 16);
    flashcupy_tensor cu_q = on_gpu(to_device(starts_q, sizeof starts_q), FLASHCUPY_INT, 32, 1, shape);
    flashcupy_tensor cu_k = on_gpu(to_device(starts_k, sizeof starts_k), FLASHCUPY_INT, 32, 1, shape);
    o->options.causal = FLASHCUPY_BOTTOM_RIGHT;
    o->options.cu_seqlens_q = &cu_q;
    o->options.cu_seqlens_k = &cu_k;
    o->options.flags = FLASHCUPY_HAS_MAX_SEQLEN_Q | FLASHCUPY_HAS_MAX_SEQLEN_K;
    o->options.max_seqlen_q = 13;
    o->options.max_seqlen_k = 14;
    fill_inputs(o, 11, stream);
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    COMPARE_ALL(o, packed, stream);
    CUDA(cudaFree(cu_q.data));
    CUDA(cudaFree(cu_k.data));
    dispose(o);
}

static const uint8_t first_blocks[] = {1, 0, 1, 0, 1, 0}, second_blocks[] = {0, 1, 0, 1, 1, 1};
static const int64_t blocks_shape[] = {2, 3};

static flashcupy_tensor blocks_on_gpu(const uint8_t *blocks) {
    return on_gpu(to_device(blocks, sizeof first_blocks), FLASHCUPY_BOOL, 8, 2, blocks_shape);
}

static operands *masked_operands(flashcupy_block_mask *mask, cudaStream_t stream) {
    operands *o = make(2, 1, 24, 40, 8, 8);
    o->options.block_mask = mask;
    fill_inputs(o, 21, stream);
    return o;
}

static flashcupy_block_mask_options mask_options(void) {
    flashcupy_block_mask_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.q_len = 24;
    options.kv_len = 40;
    options.block_q = options.block_k = 16;
    options.capacity = 4;
    options.device.device_type = FLASHCUPY_CUDA_DEVICE;
    options.device.device_id = GPU;
    return options;
}

/* Blocks in device memory become lists there, in stream order. */
static void blocks(cudaStream_t stream) {
    flashcupy_block_mask_options options = mask_options();
    flashcupy_tensor first = blocks_on_gpu(first_blocks), second = blocks_on_gpu(second_blocks);
    flashcupy_block_mask *mask;
    operands *o;
    CALL(flashcupy_block_mask_from_blocks(&options, &first, stream, &mask));
    o = masked_operands(mask, stream);
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    COMPARE_ALL(o, blocks, stream);
    CALL(flashcupy_block_mask_update_from_blocks(mask, &second, stream));
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    CALL(flashcupy_block_mask_destroy(mask)); /* while the calls are in flight */
    COMPARE_ALL(o, updated, stream);
    CUDA(cudaFree(first.data));
    CUDA(cudaFree(second.data));
    dispose(o);
}

/* Lists of the host, with a block that is visible in its lower triangle only. */
static void lists(cudaStream_t stream) {
    int32_t indptr[] = {0, 1, 3}, indices[] = {1, 0, 2};
    uint8_t partial[] = {0, 1, 0};
    uint32_t bits[16];
    static const int64_t shape[] = {3}, bits_shape[] = {1, 16, 1};
    flashcupy_tensor tindptr = i32(indptr, shape), tindices = i32(indices, shape);
    flashcupy_tensor tpartial = flashcupy_tensor_of(partial, FLASHCUPY_BOOL, 8, 1, shape);
    flashcupy_tensor tbits = flashcupy_tensor_of(bits, FLASHCUPY_UINT, 32, 3, bits_shape);
    flashcupy_block_mask_options options = mask_options();
    flashcupy_block_mask *mask;
    operands *o;
    int row;
    for (row = 0; row < 16; ++row) bits[row] = (2u << row) - 1;
    CALL(flashcupy_block_mask_from_csr(&options, &tindptr, &tindices, &tpartial, &tbits, stream, &mask));
    CALL(flashcupy_block_mask_check(mask));
    o = masked_operands(mask, stream);
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    COMPARE_ALL(o, partial, stream);
    CALL(flashcupy_block_mask_destroy(mask));
    dispose(o);
}

/* Memory for both calls' temporaries, of the larger size; NULL where none is needed. */
static void *give_workspace(operands *o) {
    flashcupy_tensor *t = o->tensors;
    uint64_t size, other;
    CALL(flashcupy_forward_workspace_size(&t[Q], &t[K], &t[V], &t[OUT], &t[LSE], &o->options, &size));
    CALL(flashcupy_backward_workspace_size(&t[Q], &t[K], &t[V], &t[OUT], &t[LSE], &t[DOUT], NULL, &t[DQ], &t[DK],
                                           &t[DV], NULL, NULL, &o->options, &other));
    size = size > other ? size : other;
    o->options.workspace = size ? device_memory(size) : NULL;
    o->options.workspace_size = size;
    return o->options.workspace;
}

static void workspace(cudaStream_t stream) {
    operands *o = causal_operands(stream);
    void *memory = give_workspace(o);
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    COMPARE_ALL(o, causal, stream);
    if (memory) {
        o->options.workspace_size = 1;
        if (backward(o, stream) != FLASHCUPY_INVALID_ARGUMENT || !strstr(flashcupy_last_error(), "workspace")) {
            fprintf(stderr, "a workspace of 1 byte: \"%s\"\n", flashcupy_last_error());
            exit(1);
        }
    }
    CUDA(cudaFree(memory));
    dispose(o);
}

/* A graph of forward and backward, replayed with other blocks in the mask that it was captured with. */
static void graph(cudaStream_t stream) {
    flashcupy_block_mask_options options = mask_options();
    flashcupy_tensor first = blocks_on_gpu(first_blocks), second = blocks_on_gpu(second_blocks), *t;
    flashcupy_block_mask *mask;
    cudaGraphExec_t executable;
    cudaGraph_t captured;
    void *memory;
    operands *o;
    CALL(flashcupy_block_mask_from_blocks(&options, &first, stream, &mask));
    o = masked_operands(mask, stream);
    t = o->tensors;
    CALL(flashcupy_warmup(&t[Q], &t[K], &t[V], &o->options, 1));
    memory = give_workspace(o);

    CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    CALL(forward(o, stream));
    CALL(backward(o, stream));
    CUDA(cudaStreamEndCapture(stream, &captured));
    CUDA(cudaGraphInstantiateWithFlags(&executable, captured, 0));

    CUDA(cudaGraphLaunch(executable, stream));
    COMPARE_ALL(o, blocks, stream);
    CALL(flashcupy_block_mask_update_from_blocks(mask, &second, stream));
    CUDA(cudaGraphLaunch(executable, stream));
    COMPARE_ALL(o, updated, stream);

    CUDA(cudaGraphExecDestroy(executable));
    CUDA(cudaGraphDestroy(captured));
    CALL(flashcupy_block_mask_destroy(mask));
    CUDA(cudaFree(memory));
    CUDA(cudaFree(first.data));
    CUDA(cudaFree(second.data));
    dispose(o);
}

/* Calls on two streams that do not wait for each other, some rounds in flight at once. */
static void two_streams(cudaStream_t one, cudaStream_t other) {
    operands *a = causal_operands(one), *b = causal_operands(other);
    int round;
    for (round = 0; round < 10; ++round) {
        CALL(forward(a, one));
        CALL(forward(b, other));
        CALL(backward(b, other));
        CALL(backward(a, one));
    }
    COMPARE_ALL(a, causal, one);
    COMPARE_ALL(b, causal, other);
    dispose(a);
    dispose(b);
}

int main(void) {
    cudaStream_t one, other;
    int devices = 0;
    cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices < 1) {
        fprintf(stderr, "no GPU: %s\n", error == cudaSuccess ? "the driver knows none" : cudaGetErrorString(error));
        return SKIPPED;
    }
    elsewhere = devices - 1;
    CUDA(cudaSetDevice(elsewhere));
    CUDA(cudaFree(NULL)); /* makes its context */
    CUDA(cudaSetDevice(GPU));
    CUDA(cudaStreamCreateWithFlags(&one, cudaStreamNonBlocking));
    CUDA(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));

    causal(NULL);
    causal(one);
    packed(one);
    blocks(one);
    lists(one);
    workspace(one);
    graph(one);
    two_streams(one, other);
    CALL(flashcupy_shutdown());

    CUDA(cudaStreamDestroy(one));
    CUDA(cudaStreamDestroy(other));
    printf("flashcupy %s: causal, packed, block masks, workspace, graph, two streams: all as expected\n",
           flashcupy_version());
    return 0;
}
