/* What the C and C++ programs of this folder share: inputs, the comparison with expected.h, statuses. */
#ifndef FLASHCUPY_EXAMPLES_COMMON_H
#define FLASHCUPY_EXAMPLES_COMMON_H

#include <flashcupy.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "expected.h"

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* The largest error that float32 explains, relative to the largest value. A rounding is 2^-24 = 6e-8; the sums here
 * have up to 60 terms, whose roundings mostly cancel: 2e-6 is 32 of them. A gradient chains three such sums. */
#define RESULT_BOUND 2e-6
#define GRADIENT_BOUND 6e-6

/* End the program unless a call succeeded. */
static inline void must(flashcupy_status status, const char *call) {
    if (status == FLASHCUPY_OK) return;
    fprintf(stderr, "%s: %s: %s\n", call, flashcupy_status_string(status), flashcupy_last_error());
    exit(1);
}

#define MUST(call) must(call, #call)

/* Values in [-1, 1) from a hash of index and seed: multiples of 2^-23, the same in every language. */
static inline void fill(float *values, size_t count, uint32_t seed) {
    size_t i;
    for (i = 0; i < count; ++i) {
        uint32_t x = (uint32_t)i * 0x9E3779B9u + seed;
        x = (x ^ x >> 16) * 0x85EBCA6Bu;
        x = (x ^ x >> 13) * 0xC2B2AE35u;
        x = (x ^ x >> 16) >> 8;
        values[i] = (float)((int32_t)x - (1 << 23)) / (float)(1 << 23);
    }
}

/* max |got - expected| / max |expected|; infinite where one of them is not finite and the other differs. */
static inline double error_of(const float *got, const double *expected, size_t count) {
    double error = 0, largest = 0;
    size_t i;
    for (i = 0; i < count; ++i) {
        if (isinf(expected[i]) && got[i] == (float)expected[i]) continue;
        if (!isfinite(got[i]) || isinf(expected[i])) return INFINITY;
        error = fmax(error, fabs(got[i] - expected[i]));
        largest = fmax(largest, fabs(expected[i]));
    }
    return error / largest;
}

/* End the program unless `got` is close to what is expected. */
static inline void compare(const char *name, const float *got, const double *expected, size_t count, double bound) {
    double error = error_of(got, expected, count);
    if (error <= bound) return;
    fprintf(stderr, "%s: off by %.2g of its largest value, at most %.2g is right\n", name, error, bound);
    exit(1);
}

#define COMPARE(array, name, bound) compare(#name, array, name##_expected, COUNT(name##_expected), bound)

/* out, lse, dq, dk and dv of a case, by its name in expected.h. */
#define COMPARE_FORWARD(name, out, lse)                                                                             \
    (COMPARE(out, name##_out, RESULT_BOUND), COMPARE(lse, name##_lse, RESULT_BOUND))
#define COMPARE_BACKWARD(name, dq, dk, dv)                                                                          \
    (COMPARE(dq, name##_dq, GRADIENT_BOUND), COMPARE(dk, name##_dk, GRADIENT_BOUND),                                \
     COMPARE(dv, name##_dv, GRADIENT_BOUND))

/* Row-major float32 on the CPU. */
static inline flashcupy_tensor f32(float *data, int32_t ndim, const int64_t *shape) {
    return flashcupy_tensor_of(data, FLASHCUPY_FLOAT, 32, ndim, shape);
}

static inline flashcupy_tensor i32(int32_t *data, const int64_t *shape) {
    return flashcupy_tensor_of(data, FLASHCUPY_INT, 32, 1, shape);
}

#endif
