/*
 * flashcupy: FlashAttention for any host that can call C. Forward, backward, packed sequences (varlen) and block-sparse
 * attention, on buffers and a CUDA stream of the caller's, or on the CPU. BSD-3-Clause.
 *
 * Results are those of the Python calls `attention`, `attention_fwd`, `attention_bwd` and their varlen forms.
 *
 *   cc main.c $(flashcupy capi --cflags --libs)
 *
 *   float q[2 * 4 * 128 * 64], k[...], v[...], out[...];
 *   int64_t shape[] = {2, 4, 128, 64};                                batch, heads, rows, head_dim
 *   flashcupy_tensor tq = flashcupy_tensor_of(q, FLASHCUPY_FLOAT, 32, 4, shape), ...;
 *   flashcupy_options options = {0};
 *   options.struct_size = sizeof options;
 *   options.causal = FLASHCUPY_BOTTOM_RIGHT;
 *   if (flashcupy_forward(&tq, &tk, &tv, &tout, NULL, &options, NULL)) fprintf(stderr, "%s\n", flashcupy_last_error());
 *
 * Status
 *   Each call that can fail returns a flashcupy_status. On anything but FLASHCUPY_OK flashcupy_last_error() names the
 *   argument, what it was and what is expected. What the host can see to be wrong is refused before anything is
 *   launched or written. Values in device memory are not read back: kernels clamp them, and touch no memory out of
 *   bounds.
 *
 * Threads and processes
 *   Every function may be called from any thread with a stack of 1 MiB, at the same time as any other; an error
 *   belongs to its thread. Calls on the CPU overlap in the computation, their preparation does not. A forked child
 *   cannot use the library that its parent has used: it gets FLASHCUPY_FORKED. (A child of a parent that has not, and
 *   one that calls exec, can.)
 *   A program that runs Python itself starts it before the first call, and calls without holding its GIL (ctypes and
 *   cffi let go of it; in C that is Py_BEGIN_ALLOW_THREADS). Once it has finalised Python, calls return
 *   FLASHCUPY_PYTHON.
 *
 * Memory
 *   Tensors are borrowed, and so is everything that they and the options point to. On the CPU a call is done with them
 *   when it returns. On a GPU, calls are asynchronous: the caller keeps buffers alive, and inputs unchanged, until the
 *   stream has passed the call; tensors and options themselves (shape and strides too) may go when the call returns.
 *   Outputs must not overlap inputs or each other, nor have elements that share memory.
 *
 * Devices and streams
 *   All tensors are on one device; small ones (alibi_slopes, sinks, lengths, cu_seqlens, seed_words) may be in host
 *   memory all the same. Device memory belongs to the device's primary context, that of the CUDA runtime. `stream` is a
 *   cudaStream_t (or CUstream) of that device, NULL the legacy default stream; on the CPU it must be NULL. Work is
 *   launched on it and never waited for, with two exceptions: the first use of a kind of call compiles and checks its
 *   kernels (flashcupy_warmup does so ahead), and a function that says so waits. The calling thread's current device
 *   and context are what they were when a call returns.
 *   Calls can be captured into CUDA graphs after a warm-up, and so can updates of masks from blocks in device memory;
 *   give calls a workspace, or what they allocate is kept until the process ends. Other functions for masks,
 *   flashcupy_warmup and flashcupy_shutdown are not to be called while any stream of the device is being captured. A
 *   mask in a graph is not destroyed before the graph.
 */
#ifndef FLASHCUPY_H
#define FLASHCUPY_H

#include <stddef.h>
#include <stdint.h>

#define FLASHCUPY_VERSION "0.1.0"
#define FLASHCUPY_ABI_VERSION 1

#if defined(__GNUC__)
#define FLASHCUPY_API __attribute__((visibility("default")))
#else
#define FLASHCUPY_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---------------------------------------------------------------- status */

typedef int32_t flashcupy_status;

enum {
    FLASHCUPY_OK = 0,
    FLASHCUPY_INVALID_ARGUMENT = 1, /* NULL, dtype, shape, device, struct size, overlapping output, stale handle, ... */
    FLASHCUPY_UNSUPPORTED = 2,      /* a valid request that the device or its backend does not serve */
    FLASHCUPY_OUT_OF_MEMORY = 3,    /* host or device memory; the library stays usable */
    FLASHCUPY_COMPILE = 4,          /* a kernel does not compile, or failed its first-use check */
    FLASHCUPY_CUDA = 5,             /* no CUDA device, or an error of the runtime or driver, perhaps of earlier work */
    FLASHCUPY_PYTHON = 6,           /* the Python behind the library cannot start, or lacks a package */
    FLASHCUPY_NOT_WARMED_UP = 7,    /* first use of a kind of call while a CUDA graph is captured */
    FLASHCUPY_FORKED = 8,           /* the process is a fork of one that uses the library */
    FLASHCUPY_INTERNAL = 9          /* a bug in flashcupy: please report the message */
};

/* The name of a status, "FLASHCUPY_OK" and so on; for other numbers "unknown status". Never NULL, lives for ever. */
FLASHCUPY_API const char *flashcupy_status_string(flashcupy_status status);

/* What the calling thread's last call that returned a status did wrong, UTF-8; "" if nothing. Valid until the thread's
 * next such call. */
FLASHCUPY_API const char *flashcupy_last_error(void);

/* The version of the library at run time (the header's is FLASHCUPY_VERSION), and that of its binary interface. A host
 * compiled with FLASHCUPY_ABI_VERSION n works with every library that returns n. */
FLASHCUPY_API const char *flashcupy_version(void);
FLASHCUPY_API int32_t flashcupy_abi_version(void);

/* --------------------------------------------------------------- tensors */

/* The layout of DLPack's DLDevice, DLDataType and DLTensor: a pointer to one of those may be cast. */

enum { /* device_type */
    FLASHCUPY_CPU = 1,
    FLASHCUPY_CUDA_DEVICE = 2,
    FLASHCUPY_CUDA_HOST = 3,    /* page-locked host memory; taken as the CPU's */
    FLASHCUPY_CUDA_MANAGED = 13 /* managed memory; taken as that of CUDA device device_id */
};

enum { /* dtype.code */
    FLASHCUPY_INT = 0,
    FLASHCUPY_UINT = 1,
    FLASHCUPY_FLOAT = 2,
    FLASHCUPY_BFLOAT = 4,
    FLASHCUPY_BOOL = 6 /* bits = 8; 0 or 1, other bytes are undefined */
};

typedef struct flashcupy_device {
    int32_t device_type;
    int32_t device_id; /* of a CUDA device; not looked at on the CPU */
} flashcupy_device;

typedef struct flashcupy_dtype {
    uint8_t code;
    uint8_t bits;
    uint16_t lanes; /* 1 */
} flashcupy_dtype;

typedef struct flashcupy_tensor {
    void *data;             /* NULL where there are no elements, and possibly where only metadata counts */
    flashcupy_device device;
    int32_t ndim;
    flashcupy_dtype dtype;
    const int64_t *shape;   /* ndim extents >= 0 */
    const int64_t *strides; /* in elements, any sign, 0 to broadcast an input; NULL = row-major */
    uint64_t byte_offset;   /* of the first element from data */
} flashcupy_tensor;

/* A row-major tensor on the CPU. */
static inline flashcupy_tensor flashcupy_tensor_of(void *data, uint8_t code, uint8_t bits, int32_t ndim,
                                                   const int64_t *shape) {
    flashcupy_tensor tensor;
    tensor.data = data;
    tensor.device.device_type = FLASHCUPY_CPU;
    tensor.device.device_id = 0;
    tensor.ndim = ndim;
    tensor.dtype.code = code;
    tensor.dtype.bits = bits;
    tensor.dtype.lanes = 1;
    tensor.shape = shape;
    tensor.strides = NULL;
    tensor.byte_offset = 0;
    return tensor;
}

/* ----------------------------------------------------------- block masks */

/* Which blocks of the score matrix are visited at all. A handle, never dereferenced: one that was destroyed is
 * recognised, and refused. */
typedef struct flashcupy_block_mask flashcupy_block_mask;

typedef struct flashcupy_block_mask_options {
    uint32_t struct_size; /* sizeof(flashcupy_block_mask_options), see flashcupy_options */
    uint32_t flags;       /* 0 */
    int64_t q_len;        /* Sq and Sk in elements; of packed sequences max_seqlen_q and max_seqlen_k */
    int64_t kv_len;
    int32_t block_q;      /* rows and columns of a block: 16, 32, 64, 128 or a multiple of 128; 0 = 64 */
    int32_t block_k;
    int64_t batch;        /* B: 1 for all, or the product of the batch dims, or the number of sequences; 0 = 1 */
    int64_t heads;        /* H: 1 for all, Hkv (shared by its query heads) or Hq; 0 = 1 */
    int64_t capacity;     /* blocks that later updates have room for, wholly visible ones and */
    int64_t partial_capacity; /* partly visible ones, over all heads; never less than there are at first */
    flashcupy_device device;  /* where it will be used; all zero = the CPU */
} flashcupy_block_mask_options;

/* Make a mask whose blocks are visible wholly or not at all.
 *
 * blocks   bool (nq, nk), (H, nq, nk) or (B, H, nq, nk), nq = ceil(q_len / block_q), nk = ceil(kv_len / block_k), on
 *          the CPU or on options->device. batch and heads are those of its shape: 0 or the same in options.
 * stream   as everywhere; where the values are in device memory they are read in its order, and nothing is waited for.
 *          What comes from the CPU is copied to a device, which waits for it.
 * mask     receives the handle, NULL on errors. The lists are copies, in the library's own memory. Calls on other
 *          streams must be ordered after `stream` by the caller.
 *
 * Of a mask on a device with blocks in device memory the capacity, if it is given, may prove too small: the results of
 * the rows it has no room for are NaN, and flashcupy_block_mask_check tells. Without one it is as large as need be. */
FLASHCUPY_API flashcupy_status flashcupy_block_mask_from_blocks(const flashcupy_block_mask_options *options,
                                                                const flashcupy_tensor *blocks, void *stream,
                                                                flashcupy_block_mask **mask);

/* Make a mask from compressed block rows; block row (b * H + h) * nq + i lists blocks indptr[row] to indptr[row + 1].
 *
 * indptr   int32 or int64 (B * H * nq + 1,), rising from 0 to nnz
 * indices  int32 or int64 (nnz,): visible block columns, strictly ascending in each row
 * partial  bool (nnz,) or NULL: marks the blocks of which only some elements are visible
 * bits     with `partial`: uint32 (n_partial, block_q, ceil(block_k / 32)), in the order of `indices`; column c of a
 *          row is bit c % 32 of word c / 32. Or bool (n_partial, block_q, block_k).
 *
 * All in host memory, whatever options->device is: lists that are not as they should be are refused. The rest is as in
 * flashcupy_block_mask_from_blocks. */
FLASHCUPY_API flashcupy_status flashcupy_block_mask_from_csr(const flashcupy_block_mask_options *options,
                                                             const flashcupy_tensor *indptr,
                                                             const flashcupy_tensor *indices,
                                                             const flashcupy_tensor *partial, /* may be NULL */
                                                             const flashcupy_tensor *bits,    /* may be NULL */
                                                             void *stream, flashcupy_block_mask **mask);

/* Rewrite a mask in place, in the order of `stream`: addresses stay, so that a captured CUDA graph sees the new blocks.
 * Shape, block size, batch, heads and device stay too. What the host can see not to fit into the capacity is refused,
 * and the mask is as before. On the CPU no call may be using the mask at that time. */
FLASHCUPY_API flashcupy_status flashcupy_block_mask_update_from_blocks(flashcupy_block_mask *mask,
                                                                       const flashcupy_tensor *blocks, void *stream);
FLASHCUPY_API flashcupy_status flashcupy_block_mask_update_from_csr(flashcupy_block_mask *mask,
                                                                    const flashcupy_tensor *indptr,
                                                                    const flashcupy_tensor *indices,
                                                                    const flashcupy_tensor *partial, /* may be NULL */
                                                                    const flashcupy_tensor *bits,    /* may be NULL */
                                                                    void *stream);

/* FLASHCUPY_INVALID_ARGUMENT if the lists are not as they should be, or a capacity has no room for all blocks. Waits
 * for the device. */
FLASHCUPY_API flashcupy_status flashcupy_block_mask_check(flashcupy_block_mask *mask);

/* Free a mask. NULL is no error. Safe while calls with it are in flight, on any stream or thread: the memory is freed
 * after them, for which that of a mask on a device waits for the device. */
FLASHCUPY_API flashcupy_status flashcupy_block_mask_destroy(flashcupy_block_mask *mask);

/* --------------------------------------------------------------- options */

enum { /* causal */
    FLASHCUPY_NOT_CAUSAL = 0,
    FLASHCUPY_BOTTOM_RIGHT = 1, /* query i sees keys j <= i + off */
    FLASHCUPY_TOP_LEFT = 2      /* j <= i; off is 0 */
};

enum {                     /* precision: the lowest accuracy permitted for products of float32 */
    FLASHCUPY_HIGHEST = 0, /* that of float32 */
    FLASHCUPY_TF32 = 1     /* factors may be rounded to 10 bits of mantissa, which is faster on tensor cores */
};

enum { /* flags: which optional values count. A value other than 0 without its flag is refused. */
    FLASHCUPY_HAS_SCALE = 1,
    FLASHCUPY_HAS_SOFTCAP = 2,
    FLASHCUPY_HAS_WINDOW_LEFT = 4,
    FLASHCUPY_HAS_WINDOW_RIGHT = 8,
    FLASHCUPY_HAS_SEED = 16,
    FLASHCUPY_HAS_MAX_SEQLEN_Q = 32,
    FLASHCUPY_HAS_MAX_SEQLEN_K = 64,
    FLASHCUPY_DETERMINISTIC = 128 /* of a backward: bitwise equal results from run to run. A forward's always are. */
};

/* All zero but struct_size = sizeof(flashcupy_options) is the default, and so is NULL in place of the struct. Later
 * versions append fields: a smaller struct_size, of an older header, means that the rest is 0; a larger one, of a newer
 * header, is accepted if what the library does not know is 0.
 *
 * With off = kv_length - q_length (used lengths), query i, key j and head h have the score
 *   softcap(scale * q_i . k_j) + bias_ij - alibi_slopes_h * |i + off - j|
 * Visibility is applied to scores, then softmax, then dropout. A query that sees no key gets out 0, lse -inf (or its
 * sink), and no gradient flows through it. */
typedef struct flashcupy_options {
    uint32_t struct_size;
    uint32_t flags;
    int32_t causal;
    int32_t precision;
    double scale;         /* default 1 / sqrt(D) */
    double softcap;       /* c > 0: scaled products become c * tanh(s / c) */
    double dropout;       /* probability 0 <= p < 1 of dropping a weight, in steps of 1/256; needs a seed */
    int64_t window_left;  /* >= 0: i + off - left <= j; without its flag unbounded */
    int64_t window_right; /* >= 0: j <= i + off + right */
    uint64_t seed;        /* the dropout mask is a pure function of both, batch entry, head, row and column */
    uint64_t seed_offset;
    const flashcupy_tensor *mask;         /* bool, broadcastable to (..., Hq, Sq, Sk): true = attend. Never expanded. */
    const flashcupy_tensor *bias;         /* floating, broadcastable likewise; -inf hides */
    const flashcupy_tensor *alibi_slopes; /* floating (Hq,) or (..., Hq) */
    const flashcupy_tensor *sinks;        /* floating (Hq,): natural-log logits that join each row's sum */
    const flashcupy_tensor *q_lengths;    /* int32 or int64, broadcastable to the batch dims: rows of q and */
    const flashcupy_tensor *kv_lengths;   /* of k, v that are used; those beyond are never read */
    const flashcupy_tensor *seed_words;   /* uint64 (2,) in place of seed and seed_offset; in device memory it is read
                                             when the kernels run, so that a replayed CUDA graph draws anew */
    /* Packed sequences (varlen): q is (Hq, total_q, D), k (Hkv, total_k, D), v (Hkv, total_k, Dv), out
     * (Hq, total_q, Dv), lse (Hq, total_q). Sequence s has rows cu_seqlens_q[s] to cu_seqlens_q[s + 1] of q, and those
     * of k and v by cu_seqlens_k. Everything that has coordinates is local to a sequence; mask and bias broadcast to
     * (sequences, Hq, max_seqlen_q, max_seqlen_k). Rows after the last sequence are never read; their out is 0. */
    const flashcupy_tensor *cu_seqlens_q; /* int32 or int64 (sequences + 1,), rising from 0 */
    const flashcupy_tensor *cu_seqlens_k;
    int64_t max_seqlen_q; /* at least the longest sequence; default: the longest. Needed where cu_seqlens are in */
    int64_t max_seqlen_k; /* device memory, which is not read back. */
    flashcupy_block_mask *block_mask;     /* on the device of q */
    void *workspace;         /* device memory, 256-byte aligned and used for nothing else, for the call's temporaries:
                                then it allocates none. */
    uint64_t workspace_size; /* At least what flashcupy_*_workspace_size tells. In use until the stream has passed the
                                call. On the CPU NULL and 0: temporaries come from the host's allocator. */
} flashcupy_options;

/* ----------------------------------------------------------------- calls */

/* Exact attention, out = softmax(scale * q k^T + ...) v, in memory linear in the sequence lengths.
 *
 * q    (..., Hq, Sq, D)   float16, bfloat16, float32 or float64, any strides: (B, S, H, D) is passed by its strides
 * k    (..., Hkv, Sk, D)  q's dtype; Hq % Hkv == 0 (grouped-query attention); batch dims broadcast as in matmul
 * v    (..., Hkv, Sk, Dv)
 * out  (..., Hq, Sq, Dv)  q's dtype, or float32 for 16-bit inputs; written
 * lse  (..., Hq, Sq)      log-sum-exp of each row's scores (natural log, before dropout), float32 (float64 for
 *                         float64); written. NULL if it is not wanted; the backward needs it.
 *
 * If q, k and v are all 2-D, out and lse have no head axis. Bitwise reproducible. */
FLASHCUPY_API flashcupy_status flashcupy_forward(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                 const flashcupy_tensor *v, const flashcupy_tensor *out,
                                                 const flashcupy_tensor *lse, /* may be NULL */
                                                 const flashcupy_options *options, void *stream);

/* Gradients. q, k, v, out, lse and options are those of the forward (workspace and DETERMINISTIC may differ).
 *
 * dout    gradient of the loss with respect to out: its shape, q's dtype, or float32 for 16-bit inputs
 * dlse    gradient with respect to lse: its shape and dtype; NULL = 0
 * dq, dk, dv, dbias, dsinks
 *         written: shape and dtype of q, k, v, bias, sinks (float32 in place of 16 bits is possible), summed over all
 *         dims that broadcast. NULL = not computed. */
FLASHCUPY_API flashcupy_status flashcupy_backward(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                  const flashcupy_tensor *v, const flashcupy_tensor *out,
                                                  const flashcupy_tensor *lse, const flashcupy_tensor *dout,
                                                  const flashcupy_tensor *dlse,   /* may be NULL, as may the rest */
                                                  const flashcupy_tensor *dq, const flashcupy_tensor *dk,
                                                  const flashcupy_tensor *dv, const flashcupy_tensor *dbias,
                                                  const flashcupy_tensor *dsinks, const flashcupy_options *options,
                                                  void *stream);

/* Bytes of workspace that the call with these very arguments needs; 0 on the CPU. Only metadata counts: any data may
 * be NULL, and stands for aligned memory, but for lengths, cu_seqlens and seed_words in host memory; the options'
 * workspace is not looked at. The same for calls of equal shapes, dtypes, strides, alignment and options. Compiles
 * and launches nothing. */
FLASHCUPY_API flashcupy_status flashcupy_forward_workspace_size(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                                const flashcupy_tensor *v, const flashcupy_tensor *out,
                                                                const flashcupy_tensor *lse, /* may be NULL */
                                                                const flashcupy_options *options, uint64_t *size);
FLASHCUPY_API flashcupy_status flashcupy_backward_workspace_size(
    const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v, const flashcupy_tensor *out,
    const flashcupy_tensor *lse, const flashcupy_tensor *dout, const flashcupy_tensor *dlse, const flashcupy_tensor *dq,
    const flashcupy_tensor *dk, const flashcupy_tensor *dv, const flashcupy_tensor *dbias,
    const flashcupy_tensor *dsinks, const flashcupy_options *options, uint64_t *size);

/* Whether calls on these arguments are served: FLASHCUPY_OK, or the status that they would return. Launches and
 * compiles nothing; data may be NULL as for workspace sizes. `reason`, if not NULL, receives a text that is valid until
 * the thread's next call: which kernels serve it and why, or what is in the way. */
FLASHCUPY_API flashcupy_status flashcupy_supported(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                   const flashcupy_tensor *v, const flashcupy_options *options,
                                                   const char **reason);

/* Compile, load and check ahead what calls like this need, the backward too if `backward` is not 0, so that they do
 * not wait for it or, under graph capture, fail. Results and gradients are taken to have the dtypes of q, k, v: call
 * once with float32 ones to warm those up. Waits for the device; data may be NULL as for workspace sizes. On the CPU
 * there is nothing to compile: arguments are checked. */
FLASHCUPY_API flashcupy_status flashcupy_warmup(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                const flashcupy_tensor *v, const flashcupy_options *options,
                                                int32_t backward);

/* ----------------------------------------------------------- the library */

/* Start what is behind the library now; otherwise the first call that needs it does. That takes some tenths of a
 * second, on a GPU more. After a failure each call returns its status and reason; a new process may try again. */
FLASHCUPY_API flashcupy_status flashcupy_init(void);

/* Wait for calls in other threads and for the devices in use, destroy all block masks and free cached memory. The
 * library stays usable: a later call starts anew. What captured CUDA graphs use is not freed. */
FLASHCUPY_API flashcupy_status flashcupy_shutdown(void);

/* How many threads a call on the CPU uses at most; 0 = what BLAS would use. */
FLASHCUPY_API flashcupy_status flashcupy_set_num_threads(int32_t threads);

enum { /* level */
    FLASHCUPY_LOG_DEBUG = 10,
    FLASHCUPY_LOG_INFO = 20,
    FLASHCUPY_LOG_WARNING = 30,
    FLASHCUPY_LOG_ERROR = 40
};

typedef void (*flashcupy_log_callback)(void *user, int32_t level, const char *message);

/* Where messages go; NULL, the default, drops them. Nothing is written to stdout or stderr (in a Python that the host
 * runs itself, Python's warnings go where the host's do). The callback runs in the thread of the call that has
 * something to say, perhaps in several at once; message is UTF-8 without a final newline, and gone when the callback
 * returns. It must not call flashcupy. Debug messages come only with FLASHCUPY_DEBUG=1 in the environment. Returns
 * when no call is using the previous callback any more. */
FLASHCUPY_API flashcupy_status flashcupy_set_log_callback(flashcupy_log_callback callback, void *user);

#ifdef __cplusplus
}
#endif

#endif /* FLASHCUPY_H */
