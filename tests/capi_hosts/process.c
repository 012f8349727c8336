/* What a process can do to the library: the first argument says what, the second where the library is. It is opened by
 * dlopen, so that nothing of it or of Python is visible to others. Prints what happened, a line a step. */
#define _GNU_SOURCE
#include "flashcupy.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { HEADS = 2, ROWS = 33, DIM = 8, SIZE = HEADS * ROWS * DIM };

static __typeof__(flashcupy_forward) *forward;
static __typeof__(flashcupy_last_error) *last_error;
static __typeof__(flashcupy_status_string) *status_string;
static __typeof__(flashcupy_shutdown) *shut_down;
static __typeof__(flashcupy_set_log_callback) *set_log_callback;

static void *open_library(const char *path) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        printf("dlopen: %s\n", dlerror());
        exit(3);
    }
    forward = (__typeof__(forward))dlsym(library, "flashcupy_forward");
    last_error = (__typeof__(last_error))dlsym(library, "flashcupy_last_error");
    status_string = (__typeof__(status_string))dlsym(library, "flashcupy_status_string");
    shut_down = (__typeof__(shut_down))dlsym(library, "flashcupy_shutdown");
    set_log_callback = (__typeof__(set_log_callback))dlsym(library, "flashcupy_set_log_callback");
    return library;
}

/* Attention over equal values is that value. */
static flashcupy_status attend(const flashcupy_options *options) {
    float q[SIZE], v[SIZE], out[SIZE];
    int64_t shape[] = {HEADS, ROWS, DIM};
    flashcupy_tensor tensors[3];
    flashcupy_status status;
    for (int i = 0; i < SIZE; ++i) q[i] = (float)(i % 7) - 3, v[i] = 2.5f, out[i] = -1;
    tensors[0] = flashcupy_tensor_of(q, FLASHCUPY_FLOAT, 32, 3, shape);
    tensors[1] = flashcupy_tensor_of(v, FLASHCUPY_FLOAT, 32, 3, shape);
    tensors[2] = flashcupy_tensor_of(out, FLASHCUPY_FLOAT, 32, 3, shape);
    status = forward(&tensors[0], &tensors[0], &tensors[1], &tensors[2], NULL, options, NULL);
    for (int i = 0; i < SIZE && !status; ++i)
        if (out[i] < 2.4999f || out[i] > 2.5001f) {
            printf("wrong: %g\n", out[i]);
            exit(4);
        }
    return status;
}

static void say(const char *what, flashcupy_status status) {
    printf("%s: %s %s\n", what, status_string(status), last_error());
    fflush(stdout);
}

static void in_child(const char *what) {
    int status = 0;
    pid_t child = fork();
    if (!child) {
        say(what, attend(NULL));
        _exit(0);
    }
    waitpid(child, &status, 0);
    if (status) printf("%s: child ended with %d\n", what, status);
}

static void *many(void *errors) {
    for (int i = 0; i < 20; ++i)
        if (attend(NULL)) ++*(int *)errors;
    return NULL;
}

static void threads(void) {
    pthread_t running[8];
    int errors[8] = {0}, sum = 0;
    for (int i = 0; i < 8; ++i) pthread_create(&running[i], NULL, many, &errors[i]);
    for (int i = 0; i < 8; ++i) {
        pthread_join(running[i], NULL);
        sum += errors[i];
    }
    printf("threads: %d errors\n", sum);
}

static volatile int go_on = 1;

static void *without_pause(void *errors) {
    while (go_on)
        if (attend(NULL)) ++*(int *)errors;
    return NULL;
}

/* Calls overlap all the time, and a shutdown comes through all the same. */
static void shutdown_during_calls(void) {
    pthread_t running[4];
    int errors[4] = {0}, sum = 0;
    alarm(60); /* ends the process, and the test with it */
    for (int i = 0; i < 4; ++i) pthread_create(&running[i], NULL, without_pause, &errors[i]);
    usleep(200000);
    for (int i = 0; i < 3; ++i) say("shutdown", shut_down());
    go_on = 0;
    for (int i = 0; i < 4; ++i) {
        pthread_join(running[i], NULL);
        sum += errors[i];
    }
    printf("calls: %d errors\n", sum);
}

static void on_message(void *user, int32_t level, const char *message) {
    printf("message %d for %s: %s; calling from it: %s\n", (int)level, (char *)user, message,
           status_string(attend(NULL)));
}

int main(int argc, char **argv) {
    const char *what = argc > 2 ? argv[1] : "";
    void *library;
    if (!strcmp(what, "behind")) { /* another library first */
        if (!dlopen(argv[3], RTLD_NOW | RTLD_LOCAL)) printf("dlopen: %s\n", dlerror());
    }
    library = open_library(argv[2]);
    if (!strcmp(what, "fork")) {
        in_child("child before the first call");
        say("parent", attend(NULL));
        in_child("child after it");
        say("parent", attend(NULL));
    } else if (!strcmp(what, "reopen")) {
        say("first", attend(NULL));
        printf("dlclose: %d\n", dlclose(library));
        open_library(argv[2]);
        say("second", attend(NULL));
    } else if (!strcmp(what, "threads")) {
        threads();
        say("shutdown", shut_down());
        threads();
    } else if (!strcmp(what, "shutdown")) {
        shutdown_during_calls();
    } else if (!strcmp(what, "chdir")) {
        if (chdir("/")) return 5;
        say("first", attend(NULL));
        say("second", attend(NULL));
    } else if (!strcmp(what, "log")) {
        flashcupy_options options = {0};
        options.struct_size = sizeof options;
        options.flags = FLASHCUPY_HAS_SEED;
        options.dropout = 0.0001; /* rounds to none, which is worth a warning */
        set_log_callback(on_message, (void *)"me");
        say("warned", attend(&options));
        set_log_callback(NULL, NULL);
        options.dropout = 0.0002;
        say("silent", attend(&options));
    } else {
        say("first", attend(NULL));
        say("second", attend(NULL));
    }
    return 0;
}
