/* Inside the front: one call from entering to leaving, and the Python that is started for the first. */
#ifndef FLASHCUPY_FRONT_H
#define FLASHCUPY_FRONT_H

#include "entries.h"

/* All functions of the extension module, by the names of the calls that they serve. */
#define FLASHCUPY_ENTRIES(X)                                                                                        \
    X(start)                                                                                                        \
    X(shutdown)                                                                                                     \
    X(set_num_threads)                                                                                              \
    X(forward)                                                                                                      \
    X(backward)                                                                                                     \
    X(forward_workspace_size)                                                                                       \
    X(backward_workspace_size)                                                                                      \
    X(supported)                                                                                                    \
    X(warmup)                                                                                                       \
    X(block_mask_from_blocks)                                                                                       \
    X(block_mask_from_csr)                                                                                          \
    X(block_mask_update_from_blocks)                                                                                \
    X(block_mask_update_from_csr)                                                                                   \
    X(block_mask_check)                                                                                             \
    X(block_mask_destroy)

typedef struct entries {
#define FLASHCUPY_MEMBER(name) __typeof__(flashcupy_py_##name) *name;
    FLASHCUPY_ENTRIES(FLASHCUPY_MEMBER)
#undef FLASHCUPY_MEMBER
} entries;

/* One call: entries to call with `reply`, from a start that worked. */
typedef struct call {
    const entries *to;
    flashcupy_reply reply;
} call;

/* Clear the thread's last error, start what has to be, and hold off a shutdown. After FLASHCUPY_OK, and only then, the
 * call must be left. */
flashcupy_status flashcupy_enter(call *call);

/* Let a shutdown in, and return the status that an entry replied with. */
flashcupy_status flashcupy_leave(call *call, int32_t replied);

/* Note an error of the calling thread, and return its status. */
flashcupy_status flashcupy_fail(flashcupy_status status, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Copy options of an older or newer header, or none, into those of this library. */
flashcupy_status flashcupy_options_of(flashcupy_options *to, const flashcupy_options *from);

/* Start Python, or join the host's, import the entries and fill `to`. *owned tells whether the interpreter is ours. On
 * failure the reason is in `reply`. Called once in a process. */
flashcupy_status flashcupy_start_python(entries *to, flashcupy_reply *reply, int32_t *owned);

/* What goes to the host's callback; see flashcupy_set_log_callback. */
void flashcupy_log(int32_t level, const char *message);

/* Forget the calling thread's last error. */
void flashcupy_clear_error(void);

#endif
