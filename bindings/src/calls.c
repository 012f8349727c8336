/* The exported calls: arguments go on to the Python behind the library, options in their present size. */
#include "front.h"

#include <string.h>

#define REQUIRED(pointer)                                                                                           \
    if (!(pointer))                                                                                                 \
        return flashcupy_leave(&call, FLASHCUPY_MARK | flashcupy_fail(FLASHCUPY_INVALID_ARGUMENT,                    \
                                                                     #pointer " is NULL"))

/* Copy a struct that starts with its size, of an older or newer header than this library's, into `known` bytes. */
static flashcupy_status sized(const char *name, void *to, const void *from, uint32_t known) {
    const unsigned char *bytes = from;
    uint32_t size, n;
    memset(to, 0, known);
    if (!from) {
        memcpy(to, &known, sizeof known);
        return FLASHCUPY_OK;
    }
    memcpy(&size, from, sizeof size);
    if (size < 2 * sizeof(uint32_t) || size > 1u << 16)
        return flashcupy_fail(FLASHCUPY_INVALID_ARGUMENT, "%s.struct_size is %u, expected sizeof(flashcupy_%s)", name,
                              (unsigned)size, name);
    for (n = known; n < size; ++n)
        if (bytes[n])
            return flashcupy_fail(FLASHCUPY_INVALID_ARGUMENT,
                                  "%s has a field at byte %u that is not 0, expected only the %u bytes that version "
                                  "%s knows: the header is of a newer one",
                                  name, (unsigned)n, (unsigned)known, FLASHCUPY_VERSION);
    memcpy(to, from, size < known ? size : known);
    return FLASHCUPY_OK;
}

flashcupy_status flashcupy_options_of(flashcupy_options *to, const flashcupy_options *from) {
    return sized("options", to, from, sizeof *to);
}

/* One call; `prepare` checks what comes before Python. */
#define CALL(name, prepare, ...)                                                                                    \
    call call;                                                                                                      \
    flashcupy_status status = flashcupy_enter(&call);                                                               \
    if (status) return status;                                                                                      \
    prepare;                                                                                                        \
    if (status) return flashcupy_leave(&call, FLASHCUPY_MARK | status);                                             \
    return flashcupy_leave(&call, call.to->name(&call.reply, __VA_ARGS__))

flashcupy_status flashcupy_forward(const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v,
                                   const flashcupy_tensor *out, const flashcupy_tensor *lse,
                                   const flashcupy_options *options, void *stream) {
    flashcupy_options own;
    CALL(forward, status = flashcupy_options_of(&own, options), q, k, v, out, lse, &own, stream);
}

flashcupy_status flashcupy_backward(const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v,
                                    const flashcupy_tensor *out, const flashcupy_tensor *lse,
                                    const flashcupy_tensor *dout, const flashcupy_tensor *dlse,
                                    const flashcupy_tensor *dq, const flashcupy_tensor *dk, const flashcupy_tensor *dv,
                                    const flashcupy_tensor *dbias, const flashcupy_tensor *dsinks,
                                    const flashcupy_options *options, void *stream) {
    flashcupy_options own;
    CALL(backward, status = flashcupy_options_of(&own, options), q, k, v, out, lse, dout, dlse, dq, dk, dv, dbias,
         dsinks, &own, stream);
}

flashcupy_status flashcupy_forward_workspace_size(const flashcupy_tensor *q, const flashcupy_tensor *k,
                                                  const flashcupy_tensor *v, const flashcupy_tensor *out,
                                                  const flashcupy_tensor *lse, const flashcupy_options *options,
                                                  uint64_t *size) {
    flashcupy_options own;
    CALL(forward_workspace_size, REQUIRED(size); status = flashcupy_options_of(&own, options), q, k, v, out, lse, &own,
         size);
}

flashcupy_status flashcupy_backward_workspace_size(
    const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v, const flashcupy_tensor *out,
    const flashcupy_tensor *lse, const flashcupy_tensor *dout, const flashcupy_tensor *dlse, const flashcupy_tensor *dq,
    const flashcupy_tensor *dk, const flashcupy_tensor *dv, const flashcupy_tensor *dbias,
    const flashcupy_tensor *dsinks, const flashcupy_options *options, uint64_t *size) {
    flashcupy_options own;
    CALL(backward_workspace_size, REQUIRED(size); status = flashcupy_options_of(&own, options), q, k, v, out, lse, dout,
         dlse, dq, dk, dv, dbias, dsinks, &own, size);
}

flashcupy_status flashcupy_warmup(const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v,
                                  const flashcupy_options *options, int32_t backward) {
    flashcupy_options own;
    CALL(warmup, status = flashcupy_options_of(&own, options), q, k, v, &own, backward);
}

flashcupy_status flashcupy_block_mask_from_blocks(const flashcupy_block_mask_options *options,
                                                  const flashcupy_tensor *blocks, void *stream,
                                                  flashcupy_block_mask **mask) {
    flashcupy_block_mask_options own;
    if (mask) *mask = NULL;
    CALL(block_mask_from_blocks, REQUIRED(mask); REQUIRED(options);
         status = sized("block_mask_options", &own, options, sizeof own), &own, blocks, stream, mask);
}

flashcupy_status flashcupy_block_mask_from_csr(const flashcupy_block_mask_options *options,
                                               const flashcupy_tensor *indptr, const flashcupy_tensor *indices,
                                               const flashcupy_tensor *partial, const flashcupy_tensor *bits,
                                               void *stream, flashcupy_block_mask **mask) {
    flashcupy_block_mask_options own;
    if (mask) *mask = NULL;
    CALL(block_mask_from_csr, REQUIRED(mask); REQUIRED(options);
         status = sized("block_mask_options", &own, options, sizeof own), &own, indptr, indices, partial, bits, stream,
         mask);
}

flashcupy_status flashcupy_block_mask_update_from_blocks(flashcupy_block_mask *mask, const flashcupy_tensor *blocks,
                                                         void *stream) {
    CALL(block_mask_update_from_blocks, (void)0, mask, blocks, stream);
}

flashcupy_status flashcupy_block_mask_update_from_csr(flashcupy_block_mask *mask, const flashcupy_tensor *indptr,
                                                      const flashcupy_tensor *indices, const flashcupy_tensor *partial,
                                                      const flashcupy_tensor *bits, void *stream) {
    CALL(block_mask_update_from_csr, (void)0, mask, indptr, indices, partial, bits, stream);
}

flashcupy_status flashcupy_block_mask_check(flashcupy_block_mask *mask) { CALL(block_mask_check, (void)0, mask); }

flashcupy_status flashcupy_block_mask_destroy(flashcupy_block_mask *mask) {
    if (!mask) {
        flashcupy_clear_error();
        return FLASHCUPY_OK;
    }
    CALL(block_mask_destroy, (void)0, mask);
}

flashcupy_status flashcupy_set_num_threads(int32_t threads) { CALL(set_num_threads, (void)0, threads); }

flashcupy_status flashcupy_init(void) {
    call call;
    flashcupy_status status = flashcupy_enter(&call);
    return status ? status : flashcupy_leave(&call, FLASHCUPY_MARK);
}
