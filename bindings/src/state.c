/* What a call passes through on its way in and out: the start of Python, forks, shutdown, errors, the log. */
#define _GNU_SOURCE
#include "front.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char error_text[4096];
static _Thread_local char reason_text[4096];
static _Thread_local int in_callback;

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static atomic_int started; /* for good or ill */
static flashcupy_status start_status;
static char start_error[4096];
static entries python;

static atomic_int owner;  /* the process that starts or has started Python */
static atomic_int forked; /* this is a child of it */
static atomic_int ended;  /* the host has finalised its Python */

/* Calls hold it for reading, a shutdown for writing. Writers come first, or calls that overlap would keep them waiting
 * for ever; nobody holds it twice. */
static pthread_rwlock_t in_use = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;

static pthread_rwlock_t log_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static flashcupy_log_callback log_callback;
static void *log_user;

/* A child of a process that has not started Python begins afresh, whatever other threads of its parent held. */
static void in_child(void) {
    static const pthread_mutex_t free_mutex = PTHREAD_MUTEX_INITIALIZER;
    static const pthread_rwlock_t free_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
    if (atomic_load(&owner)) {
        atomic_store(&forked, 1);
        return;
    }
    starting = free_mutex;
    in_use = free_lock;
    log_lock = free_lock;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(NULL, NULL, in_child); }

static void python_ends(void) { atomic_store(&ended, 1); }

void flashcupy_clear_error(void) { error_text[0] = 0; }

flashcupy_status flashcupy_fail(flashcupy_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error_text, sizeof error_text, format, arguments);
    va_end(arguments);
    return status;
}

static flashcupy_status not_here(void) {
    int pid = atomic_load(&owner);
    if (atomic_load(&forked) || (pid && pid != (int)getpid())) /* the latter where no handlers run, as after clone */
        return flashcupy_fail(FLASHCUPY_FORKED,
                              "this process is a fork of process %d, which uses flashcupy: Python and CUDA do not "
                              "survive a fork. Fork before the first call, or call exec in the child",
                              pid);
    if (atomic_load(&ended))
        return flashcupy_fail(FLASHCUPY_PYTHON, "the host has finalised its Python, which flashcupy needs");
    if (in_callback)
        return flashcupy_fail(FLASHCUPY_INVALID_ARGUMENT, "the log callback called flashcupy, which it must not");
    return FLASHCUPY_OK;
}

static void start(void) {
    static flashcupy_host host = {FLASHCUPY_VERSION, 0, flashcupy_log, python_ends};
    flashcupy_reply reply = {start_error, sizeof start_error};
    int32_t owned = 0, replied;
    atomic_store(&owner, (int)getpid());
    start_status = flashcupy_start_python(&python, &reply, &owned);
    if (start_status) return;
    host.owns_python = owned;
    replied = python.start(&reply, &host);
    if ((replied & ~0xFF) != FLASHCUPY_MARK) {
        start_status = FLASHCUPY_PYTHON;
        snprintf(start_error, sizeof start_error, "the entries cannot call Python");
    } else {
        start_status = replied & 0xFF;
    }
}

flashcupy_status flashcupy_enter(call *call) {
    flashcupy_status status;
    flashcupy_clear_error();
    if ((status = not_here())) return status;
    if (!atomic_load(&started)) {
        pthread_mutex_lock(&starting);
        if (!atomic_load(&started)) {
            start();
            atomic_store(&started, 1);
        }
        pthread_mutex_unlock(&starting);
    }
    if (start_status) return flashcupy_fail(start_status, "%s", start_error);
    pthread_rwlock_rdlock(&in_use);
    call->to = &python;
    call->reply.text = error_text;
    call->reply.capacity = sizeof error_text;
    return FLASHCUPY_OK;
}

flashcupy_status flashcupy_leave(call *call, int32_t replied) {
    (void)call; /* its entries are in use until here */
    pthread_rwlock_unlock(&in_use);
    if ((replied & ~0xFF) != FLASHCUPY_MARK)
        return flashcupy_fail(FLASHCUPY_PYTHON, "the entries cannot call Python any more");
    /* A callback that called the library has left an error of its own. */
    if (!(replied & 0xFF)) error_text[0] = 0;
    return replied & 0xFF;
}

flashcupy_status flashcupy_supported(const flashcupy_tensor *q, const flashcupy_tensor *k, const flashcupy_tensor *v,
                                     const flashcupy_options *options, const char **reason) {
    flashcupy_options own;
    call call;
    flashcupy_status status = flashcupy_enter(&call);
    reason_text[0] = 0;
    if (!status) {
        call.reply.text = reason_text;
        call.reply.capacity = sizeof reason_text;
        if ((status = flashcupy_options_of(&own, options)))
            status = flashcupy_leave(&call, FLASHCUPY_MARK | status);
        else
            status = flashcupy_leave(&call, call.to->supported(&call.reply, q, k, v, &own));
    }
    /* The reason of a failure is its error too, wherever it was noted. */
    if (status && reason_text[0]) memcpy(error_text, reason_text, sizeof error_text);
    if (status && !reason_text[0]) memcpy(reason_text, error_text, sizeof reason_text);
    if (reason) *reason = reason_text;
    return status;
}

flashcupy_status flashcupy_shutdown(void) {
    flashcupy_reply reply = {error_text, sizeof error_text};
    flashcupy_status status;
    flashcupy_clear_error();
    if ((status = not_here())) return status;
    pthread_mutex_lock(&starting); /* nothing starts meanwhile */
    if (atomic_load(&started) && !start_status) {
        int32_t replied;
        pthread_rwlock_wrlock(&in_use);
        replied = python.shutdown(&reply);
        pthread_rwlock_unlock(&in_use);
        status = (replied & ~0xFF) == FLASHCUPY_MARK ? replied & 0xFF : FLASHCUPY_PYTHON;
    }
    pthread_mutex_unlock(&starting);
    return status;
}

flashcupy_status flashcupy_set_log_callback(flashcupy_log_callback callback, void *user) {
    flashcupy_status status;
    flashcupy_clear_error();
    if ((status = not_here())) return status;
    pthread_rwlock_wrlock(&log_lock);
    log_callback = callback;
    log_user = user;
    pthread_rwlock_unlock(&log_lock);
    return FLASHCUPY_OK;
}

void flashcupy_log(int32_t level, const char *message) {
    if (in_callback) return;
    pthread_rwlock_rdlock(&log_lock);
    if (log_callback) {
        in_callback = 1;
        log_callback(log_user, level, message);
        in_callback = 0;
    }
    pthread_rwlock_unlock(&log_lock);
}

const char *flashcupy_last_error(void) { return error_text; }

const char *flashcupy_version(void) { return FLASHCUPY_VERSION; }

int32_t flashcupy_abi_version(void) { return FLASHCUPY_ABI_VERSION; }

const char *flashcupy_status_string(flashcupy_status status) {
    static const char *const names[] = {
        "FLASHCUPY_OK",       "FLASHCUPY_INVALID_ARGUMENT", "FLASHCUPY_UNSUPPORTED", "FLASHCUPY_OUT_OF_MEMORY",
        "FLASHCUPY_COMPILE",  "FLASHCUPY_CUDA",             "FLASHCUPY_PYTHON",      "FLASHCUPY_NOT_WARMED_UP",
        "FLASHCUPY_FORKED",   "FLASHCUPY_INTERNAL",
    };
    return status >= 0 && status <= FLASHCUPY_INTERNAL ? names[status] : "unknown status";
}
