/* What a Python program may load: it calls the library when told to, and once more when the process ends, which is after
 * Python has. */
#include "flashcupy.h"

#include <stdio.h>

static flashcupy_block_mask *mask;

flashcupy_status set_up(void) {
    unsigned char visible = 1;
    int64_t shape[] = {1, 1};
    flashcupy_tensor blocks = flashcupy_tensor_of(&visible, FLASHCUPY_BOOL, 8, 2, shape);
    flashcupy_block_mask_options options = {0};
    options.struct_size = sizeof options;
    options.q_len = options.kv_len = 64;
    return flashcupy_block_mask_from_blocks(&options, &blocks, NULL, &mask);
}

__attribute__((destructor)) static void tear_down(void) {
    flashcupy_status status = flashcupy_block_mask_destroy(mask);
    printf("%s %s\n", flashcupy_status_string(status), flashcupy_last_error());
    fflush(stdout);
}
