/* Calls of the C interface in a row, as a program makes them. */
#include "flashcupy.h"

#include <stdio.h>

flashcupy_status repeat(int calls, const flashcupy_tensor *q, const flashcupy_tensor *out, const flashcupy_tensor *lse,
                        const flashcupy_options *options) {
    flashcupy_status status = FLASHCUPY_OK;
    while (calls-- && !status) status = flashcupy_forward(q, q, q, out, lse, options, NULL);
    return status;
}

/* A program that makes one call. */
int main(void) {
    float q[16 * 16] = {0}, out[16 * 16];
    int64_t shape[] = {16, 16};
    flashcupy_tensor from = flashcupy_tensor_of(q, FLASHCUPY_FLOAT, 32, 2, shape);
    flashcupy_tensor to = flashcupy_tensor_of(out, FLASHCUPY_FLOAT, 32, 2, shape);
    flashcupy_status status = repeat(1, &from, &to, NULL, NULL);
    if (status) puts(flashcupy_last_error());
    return status;
}
