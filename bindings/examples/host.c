/*
 * Attention from C, on the CPU: causal with grouped-query heads, packed sequences, block masks; forward and backward.
 *
 *   cc host.c -o host $(flashcupy capi --cflags --libs) -lm -pthread
 *   ./host                 every case once, compared with expected.h
 *   ./host --threads 8     the same from eight threads at once, some rounds
 */
#include <pthread.h>
#include <string.h>

#include "common.h"

enum { ROUNDS = 5, MOST_THREADS = 64 };

/* All options at their defaults; what is 0 has no effect. */
static flashcupy_options options_with(int32_t causal) {
    flashcupy_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.causal = causal;
    return options;
}

/* Four query heads that share two heads of keys and values in pairs. */
static void causal(void) {
    enum { HQ = 4, HKV = 2, SQ = 21, SK = 33, D = 24, DV = 16 };
    float q[HQ * SQ * D], k[HKV * SK * D], v[HKV * SK * DV], out[HQ * SQ * DV], lse[HQ * SQ];
    float dout[HQ * SQ * DV], dq[HQ * SQ * D], dk[HKV * SK * D], dv[HKV * SK * DV];
    const int64_t q_shape[] = {HQ, SQ, D}, k_shape[] = {HKV, SK, D}, v_shape[] = {HKV, SK, DV};
    const int64_t out_shape[] = {HQ, SQ, DV}, lse_shape[] = {HQ, SQ};
    flashcupy_tensor tq = f32(q, 3, q_shape), tk = f32(k, 3, k_shape), tv = f32(v, 3, v_shape);
    flashcupy_tensor tout = f32(out, 3, out_shape), tlse = f32(lse, 2, lse_shape);
    flashcupy_tensor tdout = f32(dout, 3, out_shape);
    flashcupy_tensor tdq = f32(dq, 3, q_shape), tdk = f32(dk, 3, k_shape), tdv = f32(dv, 3, v_shape);
    flashcupy_options options = options_with(FLASHCUPY_BOTTOM_RIGHT);

    fill(q, COUNT(q), 1);
    fill(k, COUNT(k), 2);
    fill(v, COUNT(v), 3);
    fill(dout, COUNT(dout), 4);

    MUST(flashcupy_forward(&tq, &tk, &tv, &tout, &tlse, &options, NULL));
    COMPARE_FORWARD(causal, out, lse);

    MUST(flashcupy_backward(&tq, &tk, &tv, &tout, &tlse, &tdout, NULL, &tdq, &tdk, &tdv, NULL, NULL, &options, NULL));
    COMPARE_BACKWARD(causal, dq, dk, dv);
}

/* Sequences of 6, 0 and 13 queries, one after the other without padding. The last row of q, and the last two of k and
 * v, belong to none. */
static void packed(void) {
    enum { HQ = 2, HKV = 1, TOTAL_Q = 20, TOTAL_K = 30, D = 16 };
    float q[HQ * TOTAL_Q * D], k[HKV * TOTAL_K * D], v[HKV * TOTAL_K * D], out[HQ * TOTAL_Q * D], lse[HQ * TOTAL_Q];
    float dout[HQ * TOTAL_Q * D], dq[HQ * TOTAL_Q * D], dk[HKV * TOTAL_K * D], dv[HKV * TOTAL_K * D];
    int32_t starts_q[] = {0, 6, 6, 19}, starts_k[] = {0, 9, 14, 28};
    const int64_t q_shape[] = {HQ, TOTAL_Q, D}, k_shape[] = {HKV, TOTAL_K, D}, lse_shape[] = {HQ, TOTAL_Q};
    const int64_t starts_shape[] = {COUNT(starts_q)};
    flashcupy_tensor tq = f32(q, 3, q_shape), tk = f32(k, 3, k_shape), tv = f32(v, 3, k_shape);
    flashcupy_tensor tout = f32(out, 3, q_shape), tlse = f32(lse, 2, lse_shape), tdout = f32(dout, 3, q_shape);
    flashcupy_tensor tdq = f32(dq, 3, q_shape), tdk = f32(dk, 3, k_shape), tdv = f32(dv, 3, k_shape);
    flashcupy_tensor cu_q = i32(starts_q, starts_shape), cu_k = i32(starts_k, starts_shape);
    flashcupy_options options = options_with(FLASHCUPY_BOTTOM_RIGHT);
    options.cu_seqlens_q = &cu_q;
    options.cu_seqlens_k = &cu_k;

    fill(q, COUNT(q), 11);
    fill(k, COUNT(k), 12);
    fill(v, COUNT(v), 13);
    fill(dout, COUNT(dout), 14);

    MUST(flashcupy_forward(&tq, &tk, &tv, &tout, &tlse, &options, NULL));
    COMPARE_FORWARD(packed, out, lse);

    MUST(flashcupy_backward(&tq, &tk, &tv, &tout, &tlse, &tdout, NULL, &tdq, &tdk, &tdv, NULL, NULL, &options, NULL));
    COMPARE_BACKWARD(packed, dq, dk, dv);
}

/* Blocks of 16 x 16 scores: two rows and three columns of them, the last ones hanging over. */
enum { MASK_HQ = 2, MASK_HKV = 1, MASK_SQ = 24, MASK_SK = 40, MASK_D = 8 };
enum { BLOCK = 16, BLOCK_ROWS = 2, BLOCK_COLUMNS = 3 };

typedef struct masked_results {
    float out[MASK_HQ * MASK_SQ * MASK_D], lse[MASK_HQ * MASK_SQ];
    float dq[MASK_HQ * MASK_SQ * MASK_D], dk[MASK_HKV * MASK_SK * MASK_D], dv[MASK_HKV * MASK_SK * MASK_D];
} masked_results;

static void attend(flashcupy_block_mask *mask, masked_results *results) {
    float q[MASK_HQ * MASK_SQ * MASK_D], k[MASK_HKV * MASK_SK * MASK_D], v[MASK_HKV * MASK_SK * MASK_D];
    float dout[MASK_HQ * MASK_SQ * MASK_D];
    const int64_t q_shape[] = {MASK_HQ, MASK_SQ, MASK_D}, k_shape[] = {MASK_HKV, MASK_SK, MASK_D};
    const int64_t lse_shape[] = {MASK_HQ, MASK_SQ};
    flashcupy_tensor tq = f32(q, 3, q_shape), tk = f32(k, 3, k_shape), tv = f32(v, 3, k_shape);
    flashcupy_tensor tout = f32(results->out, 3, q_shape), tlse = f32(results->lse, 2, lse_shape);
    flashcupy_tensor tdout = f32(dout, 3, q_shape), tdq = f32(results->dq, 3, q_shape);
    flashcupy_tensor tdk = f32(results->dk, 3, k_shape), tdv = f32(results->dv, 3, k_shape);
    flashcupy_options options = options_with(FLASHCUPY_NOT_CAUSAL);
    options.block_mask = mask;

    fill(q, COUNT(q), 21);
    fill(k, COUNT(k), 22);
    fill(v, COUNT(v), 23);
    fill(dout, COUNT(dout), 24);

    MUST(flashcupy_forward(&tq, &tk, &tv, &tout, &tlse, &options, NULL));
    MUST(flashcupy_backward(&tq, &tk, &tv, &tout, &tlse, &tdout, NULL, &tdq, &tdk, &tdv, NULL, NULL, &options, NULL));
}

static flashcupy_block_mask_options mask_options(void) {
    flashcupy_block_mask_options options;
    memset(&options, 0, sizeof options);
    options.struct_size = sizeof options;
    options.q_len = MASK_SQ;
    options.kv_len = MASK_SK;
    options.block_q = BLOCK;
    options.block_k = BLOCK;
    return options;
}

/* A mask from a table of blocks, and other blocks in the same memory. */
static void blocks(void) {
    uint8_t first[BLOCK_ROWS][BLOCK_COLUMNS] = {{1, 0, 1}, {0, 1, 0}};
    uint8_t second[BLOCK_ROWS][BLOCK_COLUMNS] = {{0, 1, 0}, {1, 1, 1}};
    const int64_t shape[] = {BLOCK_ROWS, BLOCK_COLUMNS};
    flashcupy_tensor tfirst = flashcupy_tensor_of(first, FLASHCUPY_BOOL, 8, 2, shape);
    flashcupy_tensor tsecond = flashcupy_tensor_of(second, FLASHCUPY_BOOL, 8, 2, shape);
    flashcupy_block_mask_options options = mask_options();
    flashcupy_block_mask *mask;
    masked_results results;
    options.capacity = 4; /* the second has one block more than the first */

    MUST(flashcupy_block_mask_from_blocks(&options, &tfirst, NULL, &mask));
    MUST(flashcupy_block_mask_check(mask));
    attend(mask, &results);
    COMPARE_FORWARD(blocks, results.out, results.lse);
    COMPARE_BACKWARD(blocks, results.dq, results.dk, results.dv);

    MUST(flashcupy_block_mask_update_from_blocks(mask, &tsecond, NULL));
    MUST(flashcupy_block_mask_check(mask));
    attend(mask, &results);
    COMPARE_FORWARD(updated, results.out, results.lse);
    COMPARE_BACKWARD(updated, results.dq, results.dk, results.dv);

    MUST(flashcupy_block_mask_destroy(mask));
}

/* A mask from lists of blocks: {1}, and {0, 2} of which block 0 is visible in its lower triangle only. */
static void lists(void) {
    int32_t indptr[] = {0, 1, 3}, indices[] = {1, 0, 2};
    uint8_t partial[] = {0, 1, 0};
    uint32_t bits[BLOCK];
    const int64_t indptr_shape[] = {COUNT(indptr)}, indices_shape[] = {COUNT(indices)}, bits_shape[] = {1, BLOCK, 1};
    flashcupy_tensor tindptr = i32(indptr, indptr_shape), tindices = i32(indices, indices_shape);
    flashcupy_tensor tpartial = flashcupy_tensor_of(partial, FLASHCUPY_BOOL, 8, 1, indices_shape);
    flashcupy_tensor tbits = flashcupy_tensor_of(bits, FLASHCUPY_UINT, 32, 3, bits_shape);
    flashcupy_block_mask_options options = mask_options();
    flashcupy_block_mask *mask;
    masked_results results;
    int row;
    for (row = 0; row < BLOCK; ++row) bits[row] = (2u << row) - 1; /* columns 0 to row */

    MUST(flashcupy_block_mask_from_csr(&options, &tindptr, &tindices, &tpartial, &tbits, NULL, &mask));
    MUST(flashcupy_block_mask_check(mask));
    attend(mask, &results);
    COMPARE_FORWARD(partial, results.out, results.lse);
    COMPARE_BACKWARD(partial, results.dq, results.dk, results.dv);
    MUST(flashcupy_block_mask_destroy(mask));
}

static void every_case(void) {
    causal();
    packed();
    blocks();
    lists();
}

static void *some_rounds(void *unused) {
    int round;
    for (round = 0; round < ROUNDS; ++round) every_case();
    return unused;
}

static void run_threads(int count) {
    pthread_t threads[MOST_THREADS];
    int i;
    for (i = 0; i < count; ++i)
        if (pthread_create(&threads[i], NULL, some_rounds, NULL)) {
            fprintf(stderr, "thread %d cannot be started\n", i);
            exit(1);
        }
    for (i = 0; i < count; ++i) pthread_join(threads[i], NULL);
}

int main(int argc, char **argv) {
    int threads = argc == 3 && !strcmp(argv[1], "--threads") ? atoi(argv[2]) : 0;
    if (argc > 1 && (threads < 1 || threads > MOST_THREADS)) {
        fprintf(stderr, "usage: %s [--threads 1..%d]\n", argv[0], MOST_THREADS);
        return 2;
    }
    if (threads) {
        run_threads(threads);
        printf("%d threads, %d rounds each: all as expected\n", threads, ROUNDS);
    } else {
        every_case();
        printf("flashcupy %s: causal, packed, block masks from tables and lists: all as expected\n",
               flashcupy_version());
    }
    MUST(flashcupy_shutdown());
    return 0;
}
