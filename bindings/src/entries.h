/*
 * What the library's front, in C, calls in the Python behind it: functions of an extension module that cffi makes of
 * these declarations. Each calls the function of Python's that is bound to it.
 */
#ifndef FLASHCUPY_ENTRIES_H
#define FLASHCUPY_ENTRIES_H

#include "flashcupy.h"

/* cffi returns 0 for a function of Python's that it cannot call: hence a status is marked. */
enum { FLASHCUPY_MARK = 0x0FC0000 };

/* Where the text of a reply goes: UTF-8, cut to capacity, with a final 0. */
typedef struct flashcupy_reply {
    char *text;
    uint64_t capacity;
} flashcupy_reply;

typedef void (*flashcupy_log_sink)(int32_t level, const char *message);
typedef void (*flashcupy_notice)(void);

/* What Python needs of the front. */
typedef struct flashcupy_host {
    const char *version; /* of the front; Python's must be the same */
    int32_t owns_python; /* whether the interpreter is the library's own */
    flashcupy_log_sink log;
    flashcupy_notice python_ends; /* the host finalises its Python: no call may reach it any more */
} flashcupy_host;

int32_t flashcupy_py_start(flashcupy_reply *reply, const flashcupy_host *host);
int32_t flashcupy_py_shutdown(flashcupy_reply *reply);
int32_t flashcupy_py_set_num_threads(flashcupy_reply *reply, int32_t threads);
int32_t flashcupy_py_forward(flashcupy_reply *reply, const flashcupy_tensor *q, const flashcupy_tensor *k,
                             const flashcupy_tensor *v, const flashcupy_tensor *out, const flashcupy_tensor *lse,
                             const flashcupy_options *options, void *stream);
int32_t flashcupy_py_backward(flashcupy_reply *reply, const flashcupy_tensor *q, const flashcupy_tensor *k,
                              const flashcupy_tensor *v, const flashcupy_tensor *out, const flashcupy_tensor *lse,
                              const flashcupy_tensor *dout, const flashcupy_tensor *dlse, const flashcupy_tensor *dq,
                              const flashcupy_tensor *dk, const flashcupy_tensor *dv, const flashcupy_tensor *dbias,
                              const flashcupy_tensor *dsinks, const flashcupy_options *options, void *stream);
int32_t flashcupy_py_forward_workspace_size(flashcupy_reply *reply, const flashcupy_tensor *q,
                                            const flashcupy_tensor *k, const flashcupy_tensor *v,
                                            const flashcupy_tensor *out, const flashcupy_tensor *lse,
                                            const flashcupy_options *options, uint64_t *size);
int32_t flashcupy_py_backward_workspace_size(flashcupy_reply *reply, const flashcupy_tensor *q,
                                             const flashcupy_tensor *k, const flashcupy_tensor *v,
                                             const flashcupy_tensor *out, const flashcupy_tensor *lse,
                                             const flashcupy_tensor *dout, const flashcupy_tensor *dlse,
                                             const flashcupy_tensor *dq, const flashcupy_tensor *dk,
                                             const flashcupy_tensor *dv, const flashcupy_tensor *dbias,
                                             const flashcupy_tensor *dsinks, const flashcupy_options *options,
                                             uint64_t *size);
int32_t flashcupy_py_supported(flashcupy_reply *reply, const flashcupy_tensor *q, const flashcupy_tensor *k,
                               const flashcupy_tensor *v, const flashcupy_options *options);
int32_t flashcupy_py_warmup(flashcupy_reply *reply, const flashcupy_tensor *q, const flashcupy_tensor *k,
                            const flashcupy_tensor *v, const flashcupy_options *options, int32_t backward);
int32_t flashcupy_py_block_mask_from_blocks(flashcupy_reply *reply, const flashcupy_block_mask_options *options,
                                            const flashcupy_tensor *blocks, void *stream, flashcupy_block_mask **mask);
int32_t flashcupy_py_block_mask_from_csr(flashcupy_reply *reply, const flashcupy_block_mask_options *options,
                                         const flashcupy_tensor *indptr, const flashcupy_tensor *indices,
                                         const flashcupy_tensor *partial, const flashcupy_tensor *bits, void *stream,
                                         flashcupy_block_mask **mask);
int32_t flashcupy_py_block_mask_update_from_blocks(flashcupy_reply *reply, flashcupy_block_mask *mask,
                                                   const flashcupy_tensor *blocks, void *stream);
int32_t flashcupy_py_block_mask_update_from_csr(flashcupy_reply *reply, flashcupy_block_mask *mask,
                                                const flashcupy_tensor *indptr, const flashcupy_tensor *indices,
                                                const flashcupy_tensor *partial, const flashcupy_tensor *bits,
                                                void *stream);
int32_t flashcupy_py_block_mask_check(flashcupy_reply *reply, flashcupy_block_mask *mask);
int32_t flashcupy_py_block_mask_destroy(flashcupy_reply *reply, flashcupy_block_mask *mask);

#endif
