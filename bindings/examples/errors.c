/*
 * What a program gets for wrong arguments, on the CPU: a status, a message that names the argument, and outputs that
 * nothing was written to.
 *
 *   cc errors.c -o errors $(flashcupy capi --cflags --libs) -lm
 */
#include <ctype.h>
#include <string.h>

#include "common.h"

enum { H = 2, SQ = 6, SK = 9, D = 8, NOBODYS_GPU = 99 };

#define UNTOUCHED 12345.0f

static float q_data[H * SQ * D], k_data[H * SK * D], v_data[H * SK * D], lse_data[H * SQ], out_data[H * SQ * D];
static float dout_data[H * SQ * D], dq_data[H * SQ * D];
static int checks, failures;

/* A call that is right, to be spoilt in one place. */
typedef struct scene {
    flashcupy_tensor q, k, v, out, lse, dout, dq;
    flashcupy_options options;
    void *stream;
} scene;

static const int64_t q_shape[] = {H, SQ, D}, k_shape[] = {H, SK, D}, lse_shape[] = {H, SQ};

static scene right(void) {
    scene s;
    size_t i;
    fill(q_data, COUNT(q_data), 1);
    fill(k_data, COUNT(k_data), 2);
    fill(v_data, COUNT(v_data), 3);
    fill(dout_data, COUNT(dout_data), 4);
    for (i = 0; i < COUNT(out_data); ++i) out_data[i] = dq_data[i] = UNTOUCHED;
    for (i = 0; i < COUNT(lse_data); ++i) lse_data[i] = UNTOUCHED;
    memset(&s, 0, sizeof s);
    s.q = f32(q_data, 3, q_shape);
    s.k = f32(k_data, 3, k_shape);
    s.v = f32(v_data, 3, k_shape);
    s.out = f32(out_data, 3, q_shape);
    s.lse = f32(lse_data, 2, lse_shape);
    s.dout = f32(dout_data, 3, q_shape);
    s.dq = f32(dq_data, 3, q_shape);
    s.options.struct_size = sizeof s.options;
    return s;
}

static flashcupy_status forward(const scene *s) {
    return flashcupy_forward(&s->q, &s->k, &s->v, &s->out, &s->lse, &s->options, s->stream);
}

static flashcupy_status backward(const scene *s) {
    return flashcupy_backward(&s->q, &s->k, &s->v, &s->out, &s->lse, &s->dout, NULL, &s->dq, NULL, NULL, NULL, NULL,
                              &s->options, s->stream);
}

static int part_of_name(char c) { return isalnum((unsigned char)c) || c == '_'; }

static int names(const char *message, const char *argument) {
    size_t length = strlen(argument);
    const char *at = message;
    for (; (at = strstr(at, argument)); ++at)
        if ((at == message || !part_of_name(at[-1])) && !part_of_name(at[length])) return 1;
    return 0;
}

static int untouched(void) {
    size_t i;
    for (i = 0; i < COUNT(out_data); ++i)
        if (out_data[i] != UNTOUCHED || dq_data[i] != UNTOUCHED) return 0;
    for (i = 0; i < COUNT(lse_data); ++i)
        if (lse_data[i] != UNTOUCHED) return 0;
    return 1;
}

static void refused(const char *what, flashcupy_status got, flashcupy_status wanted, const char *argument) {
    const char *message = flashcupy_last_error();
    ++checks;
    if (got == wanted && names(message, argument) && untouched()) return;
    ++failures;
    fprintf(stderr, "%s: %s \"%s\", expected %s that names %s%s\n", what, flashcupy_status_string(got), message,
            flashcupy_status_string(wanted), argument, untouched() ? "" : "; an output was written to");
}

static void accepted(const char *what, flashcupy_status got) {
    ++checks;
    if (got == FLASHCUPY_OK && !*flashcupy_last_error()) return;
    ++failures;
    fprintf(stderr, "%s: %s \"%s\", expected success\n", what, flashcupy_status_string(got), flashcupy_last_error());
}

static void holds(const char *what, int condition) {
    ++checks;
    if (condition) return;
    ++failures;
    fprintf(stderr, "not true: %s\n", what);
}

/* A right call after `change`, which may use s. */
#define REFUSED(what, change, argument)                                                                             \
    do {                                                                                                            \
        scene s = right();                                                                                          \
        change;                                                                                                     \
        refused(what, forward(&s), FLASHCUPY_INVALID_ARGUMENT, argument);                                           \
    } while (0)

#define ACCEPTED(what, change)                                                                                      \
    do {                                                                                                            \
        scene s = right();                                                                                          \
        change;                                                                                                     \
        accepted(what, forward(&s));                                                                                \
    } while (0)

static void tensors(void) {
    static const int64_t negative[] = {H, -1, D}, wide[] = {H, SQ, D + 1}, heads[] = {3, SK, D};
    static const int64_t broadcast[] = {0, D, 1};
    scene s;
    ACCEPTED("nothing wrong", (void)0);
    s = right();
    refused("q NULL", flashcupy_forward(NULL, &s.k, &s.v, &s.out, &s.lse, NULL, NULL), FLASHCUPY_INVALID_ARGUMENT, "q");
    refused("k NULL", flashcupy_forward(&s.q, NULL, &s.v, &s.out, &s.lse, NULL, NULL), FLASHCUPY_INVALID_ARGUMENT, "k");
    refused("v NULL", flashcupy_forward(&s.q, &s.k, NULL, &s.out, &s.lse, NULL, NULL), FLASHCUPY_INVALID_ARGUMENT, "v");
    refused("out NULL", flashcupy_forward(&s.q, &s.k, &s.v, NULL, &s.lse, NULL, NULL), FLASHCUPY_INVALID_ARGUMENT,
            "out");
    REFUSED("q.data NULL", s.q.data = NULL, "q.data");
    REFUSED("out.data NULL", s.out.data = NULL, "out.data");
    REFUSED("k.shape NULL", s.k.shape = NULL, "k.shape");
    REFUSED("an extent below 0", s.q.shape = negative, "q");
    REFUSED("ndim below 0", s.v.ndim = -1, "v.ndim");
    REFUSED("ndim 33", s.v.ndim = 33, "v.ndim");
    REFUSED("ndim 1", s.q.ndim = 1, "q");
    REFUSED("q of integers", s.q.dtype.code = FLASHCUPY_INT, "q");
    REFUSED("q of 12 bits", s.q.dtype.bits = 12, "q");
    REFUSED("an unknown dtype code", s.q.dtype.code = 77, "q");
    REFUSED("k of another dtype", s.k.dtype.bits = 16, "k");
    REFUSED("two lanes", s.q.dtype.lanes = 2, "q");
    REFUSED("out of another shape", s.out.shape = wide, "out");
    REFUSED("out of another dtype", s.out.dtype.bits = 64, "out");
    REFUSED("lse of another dtype", s.lse.dtype.bits = 64, "lse");
    REFUSED("lse of another shape", s.lse.ndim = 1, "lse");
    REFUSED("three heads of k for two of q", s.k.shape = s.v.shape = heads, "q");
    REFUSED("a head_dim of k's own", s.k.shape = wide, "k");
    REFUSED("out over q", s.out.data = q_data, "out");
    REFUSED("lse within out", s.lse.data = out_data, "lse");
    REFUSED("an out that is broadcast", s.out.strides = broadcast, "out");
    ACCEPTED("a q that is broadcast", s.q.strides = broadcast);
    REFUSED("strides beyond the address space", s.q.byte_offset = (uint64_t)1 << 63, "q");
}

static void devices(void) {
    scene s = right();
    flashcupy_status status;
    REFUSED("an unknown device_type", s.q.device.device_type = 77, "q");
    REFUSED("a stream on the CPU", s.stream = &s, "stream");
    s.q.device.device_type = FLASHCUPY_CUDA_DEVICE;
    s.q.device.device_id = NOBODYS_GPU;
    status = forward(&s); /* FLASHCUPY_PYTHON without CuPy */
    refused("a GPU that is not there", status, status ? status : FLASHCUPY_INVALID_ARGUMENT,
            status == FLASHCUPY_PYTHON ? "CuPy" : "q");
}

static void struct_sizes(void) {
    struct {
        flashcupy_options known;
        uint64_t newer;
    } large;
    scene s = right();
    memset(&large, 0, sizeof large);
    large.known.struct_size = sizeof large;
    accepted("a newer header's options", flashcupy_forward(&s.q, &s.k, &s.v, &s.out, &s.lse, &large.known, NULL));
    s = right();
    large.newer = 1;
    refused("a newer header's option", flashcupy_forward(&s.q, &s.k, &s.v, &s.out, &s.lse, &large.known, NULL),
            FLASHCUPY_INVALID_ARGUMENT, "options");
    REFUSED("struct_size 0", s.options.struct_size = 0, "options.struct_size");
    REFUSED("struct_size 4", s.options.struct_size = 4, "options.struct_size");
    REFUSED("struct_size that cannot be", s.options.struct_size = UINT32_MAX, "options.struct_size");
    ACCEPTED("an older header's options", s.options.struct_size = offsetof(flashcupy_options, block_mask));
    s = right();
    accepted("no options", flashcupy_forward(&s.q, &s.k, &s.v, &s.out, &s.lse, NULL, NULL));
    s = right();
    accepted("no lse", flashcupy_forward(&s.q, &s.k, &s.v, &s.out, NULL, NULL, NULL));
}

static void option_values(void) {
    static uint8_t mask_data[SQ * SK];
    static const int64_t mask_shape[] = {SQ, SK}, bad_shape[] = {SK, SQ};
    flashcupy_tensor integers = flashcupy_tensor_of(mask_data, FLASHCUPY_UINT, 8, 2, mask_shape);
    flashcupy_tensor turned = flashcupy_tensor_of(mask_data, FLASHCUPY_BOOL, 8, 2, bad_shape);
    REFUSED("an unknown flag", s.options.flags = 1u << 30, "options.flags");
    REFUSED("a scale without its flag", s.options.scale = 0.5, "scale");
    REFUSED("a softcap of 0", s.options.flags = FLASHCUPY_HAS_SOFTCAP, "softcap");
    REFUSED("a scale that is no number", (s.options.flags = FLASHCUPY_HAS_SCALE, s.options.scale = NAN), "scale");
    REFUSED("a window to the left below 0", (s.options.flags = FLASHCUPY_HAS_WINDOW_LEFT, s.options.window_left = -1),
            "window_left");
    REFUSED("a window to the right without its flag", s.options.window_right = 3, "window_right");
    REFUSED("an unknown causal", s.options.causal = 3, "causal");
    REFUSED("an unknown precision", s.options.precision = 2, "precision");
    REFUSED("dropout without a seed", s.options.dropout = 0.5, "dropout");
    REFUSED("dropout of 1", (s.options.dropout = 1, s.options.flags = FLASHCUPY_HAS_SEED), "dropout");
    REFUSED("a seed without its flag", s.options.seed = 7, "seed");
    REFUSED("a seed_offset without a seed", s.options.seed_offset = 7, "seed_offset");
    REFUSED("a mask of integers", s.options.mask = &integers, "mask");
    REFUSED("a mask of another shape", s.options.mask = &turned, "mask");
    REFUSED("a workspace on the CPU", (s.options.workspace = mask_data, s.options.workspace_size = 256), "workspace");
    REFUSED("a workspace_size alone", s.options.workspace_size = 256, "workspace_size");
}

static void sequences(void) {
    static int32_t right_q[] = {0, 2, SQ}, right_k[] = {0, 4, SK}, falling[] = {0, 4, 2}, late[] = {1, 2, SQ};
    static int32_t beyond[] = {0, 2, SQ + 1};
    static const int64_t shape[] = {3}, shorter[] = {2};
    flashcupy_tensor cu_q = i32(right_q, shape), cu_k = i32(right_k, shape), down = i32(falling, shape);
    flashcupy_tensor first = i32(late, shape), last = i32(beyond, shape), fewer = i32(right_k, shorter);
    flashcupy_tensor floating = cu_q, nowhere = cu_q;
    floating.dtype.code = FLASHCUPY_FLOAT;
    nowhere.data = NULL;
#define PACKED(q_starts, k_starts) (s.options.cu_seqlens_q = (q_starts), s.options.cu_seqlens_k = (k_starts))
    ACCEPTED("packed sequences", PACKED(&cu_q, &cu_k));
    REFUSED("cu_seqlens_q alone", s.options.cu_seqlens_q = &cu_q, "cu_seqlens_k");
    REFUSED("cu_seqlens that fall", PACKED(&down, &cu_k), "cu_seqlens_q");
    REFUSED("cu_seqlens that start late", PACKED(&first, &cu_k), "cu_seqlens_q");
    REFUSED("cu_seqlens beyond the rows", PACKED(&last, &cu_k), "cu_seqlens_q");
    REFUSED("fewer sequences of k", PACKED(&cu_q, &fewer), "cu_seqlens_k");
    REFUSED("cu_seqlens of float32", PACKED(&floating, &cu_k), "cu_seqlens_q");
    REFUSED("cu_seqlens without data", PACKED(&nowhere, &cu_k), "cu_seqlens_q.data");
    REFUSED("a max_seqlen that is too small",
            (PACKED(&cu_q, &cu_k), s.options.flags = FLASHCUPY_HAS_MAX_SEQLEN_K, s.options.max_seqlen_k = 1),
            "max_seqlen_k");
    REFUSED("a max_seqlen of dense rows", (s.options.flags = FLASHCUPY_HAS_MAX_SEQLEN_Q, s.options.max_seqlen_q = SQ),
            "max_seqlen_q");
}

static void gradients(void) {
    static const int64_t wide[] = {H, SQ, D + 1};
    scene s = right();
    s.dout.shape = wide;
    refused("dout of another shape", backward(&s), FLASHCUPY_INVALID_ARGUMENT, "dout");
    s = right();
    s.dq.dtype.bits = 64;
    refused("dq of another dtype", backward(&s), FLASHCUPY_INVALID_ARGUMENT, "dq");
    s = right();
    s.dq.data = q_data;
    refused("dq over q", backward(&s), FLASHCUPY_INVALID_ARGUMENT, "dq");
    s = right();
    refused("no lse for a backward",
            flashcupy_backward(&s.q, &s.k, &s.v, &s.out, NULL, &s.dout, NULL, &s.dq, NULL, NULL, NULL, NULL, NULL,
                               NULL),
            FLASHCUPY_INVALID_ARGUMENT, "lse");
    refused("no dout for a backward",
            flashcupy_backward(&s.q, &s.k, &s.v, &s.out, &s.lse, NULL, NULL, &s.dq, NULL, NULL, NULL, NULL, NULL,
                               NULL),
            FLASHCUPY_INVALID_ARGUMENT, "dout");
    refused("dsinks without sinks",
            flashcupy_backward(&s.q, &s.k, &s.v, &s.out, &s.lse, &s.dout, NULL, &s.dq, NULL, NULL, NULL, &s.lse, NULL,
                               NULL),
            FLASHCUPY_INVALID_ARGUMENT, "sinks");
    refused("nowhere to write a size to",
            flashcupy_forward_workspace_size(&s.q, &s.k, &s.v, &s.out, &s.lse, NULL, NULL), FLASHCUPY_INVALID_ARGUMENT,
            "size");
}

static flashcupy_block_mask_options mask_options(void) {
    flashcupy_block_mask_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.q_len = SQ;
    options.kv_len = 4 * 16;
    options.block_q = options.block_k = 16;
    return options;
}

/* Lists that make no mask. */
static void lists(void) {
    static int32_t indptr[] = {0, 2}, beyond[] = {0, 3}, unsorted[] = {2, 0}, outside[] = {0, 4}, fine[] = {0, 2};
    static const int64_t shape[] = {2};
    flashcupy_tensor starts = i32(indptr, shape), too_far = i32(beyond, shape), ids = i32(fine, shape), bad;
    flashcupy_block_mask_options options = mask_options();
    flashcupy_block_mask *mask = (flashcupy_block_mask *)&mask;
#define FROM_CSR(starts, ids) flashcupy_block_mask_from_csr(&options, starts, ids, NULL, NULL, NULL, &mask)
    right();
    bad = i32(unsorted, shape);
    refused("ids that are not sorted", FROM_CSR(&starts, &bad), FLASHCUPY_INVALID_ARGUMENT, "indices");
    holds("the handle is NULL after an error", !mask);
    bad = i32(outside, shape);
    refused("ids out of range", FROM_CSR(&starts, &bad), FLASHCUPY_INVALID_ARGUMENT, "indices");
    refused("an indptr beyond the ids", FROM_CSR(&too_far, &ids), FLASHCUPY_INVALID_ARGUMENT, "indptr");
    refused("indptr NULL", FROM_CSR(NULL, &ids), FLASHCUPY_INVALID_ARGUMENT, "indptr");
    options.block_q = 48;
    refused("an odd block size", FROM_CSR(&starts, &ids), FLASHCUPY_INVALID_ARGUMENT, "block_q");
    options = mask_options();
    options.q_len = -1;
    refused("q_len below 0", FROM_CSR(&starts, &ids), FLASHCUPY_INVALID_ARGUMENT, "q_len");
    options = mask_options();
    options.flags = 1;
    refused("a flag of masks", FROM_CSR(&starts, &ids), FLASHCUPY_INVALID_ARGUMENT, "block_mask_options.flags");
    options.struct_size = 0;
    refused("struct_size of masks", FROM_CSR(&starts, &ids), FLASHCUPY_INVALID_ARGUMENT,
            "block_mask_options.struct_size");
}

static void masks(void) {
    static uint8_t one[] = {0, 0, 1, 0}, four[] = {1, 1, 1, 1};
    static const int64_t shape[] = {1, 4}, flat[] = {4}, k_rows[] = {H, 4 * 16, D};
    static float keys[H * 4 * 16 * D];
    flashcupy_tensor first = flashcupy_tensor_of(one, FLASHCUPY_BOOL, 8, 2, shape);
    flashcupy_tensor more = flashcupy_tensor_of(four, FLASHCUPY_BOOL, 8, 2, shape);
    flashcupy_tensor odd = flashcupy_tensor_of(four, FLASHCUPY_BOOL, 8, 1, flat);
    flashcupy_block_mask_options options = mask_options();
    flashcupy_block_mask *mask, *made_up = (flashcupy_block_mask *)&options, *none;
    float before[COUNT(out_data)];
    scene s = right();
    s.k = f32(keys, 3, k_rows);
    s.v = f32(keys, 3, k_rows);
    fill(keys, COUNT(keys), 5);
    refused("nowhere to write a mask to", flashcupy_block_mask_from_blocks(&options, &first, NULL, NULL),
            FLASHCUPY_INVALID_ARGUMENT, "mask");
    refused("no options of a mask", flashcupy_block_mask_from_blocks(NULL, &first, NULL, &none),
            FLASHCUPY_INVALID_ARGUMENT, "options");
    refused("a flat table", flashcupy_block_mask_from_blocks(&options, &odd, NULL, &none), FLASHCUPY_INVALID_ARGUMENT,
            "blocks");
    MUST(flashcupy_block_mask_from_blocks(&options, &first, NULL, &mask));

    /* An update that is refused leaves the mask as it was. */
    s.options.block_mask = mask;
    accepted("a call with a mask", forward(&s));
    memcpy(before, out_data, sizeof before);
    right();
    refused("an update beyond the capacity", flashcupy_block_mask_update_from_blocks(mask, &more, NULL),
            FLASHCUPY_INVALID_ARGUMENT, "capacity");
    accepted("check after an update", flashcupy_block_mask_check(mask));
    accepted("a call after an update", forward(&s));
    holds("the mask is as before an update that was refused", !memcmp(before, out_data, sizeof before));

    REFUSED("a mask of other lengths", s.options.block_mask = mask, "block_mask");
    REFUSED("a handle that is made up", s.options.block_mask = made_up, "block_mask");
    right();
    refused("check of NULL", flashcupy_block_mask_check(NULL), FLASHCUPY_INVALID_ARGUMENT, "block_mask");
    accepted("destroy", flashcupy_block_mask_destroy(mask));
    accepted("destroy of NULL", flashcupy_block_mask_destroy(NULL));
    refused("destroy again", flashcupy_block_mask_destroy(mask), FLASHCUPY_INVALID_ARGUMENT, "block_mask");
    refused("update after destroy", flashcupy_block_mask_update_from_blocks(mask, &first, NULL),
            FLASHCUPY_INVALID_ARGUMENT, "block_mask");
    REFUSED("a mask that was destroyed", s.options.block_mask = mask, "block_mask");
}

int main(void) {
    refused("threads below 0", (right(), flashcupy_set_num_threads(-1)), FLASHCUPY_INVALID_ARGUMENT, "threads");
    tensors();
    devices();
    struct_sizes();
    option_values();
    sequences();
    gradients();
    lists();
    masks();
    printf("%d checks of wrong and of unusual arguments, %d failed\n", checks, failures);
    return failures ? 1 : 0;
}
