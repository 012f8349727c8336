// Emulated: the product is rounded where the contracted build cannot see where it goes.
#pragma once

__device__ EMU_INLINE float multiply_rounded(float a, float b) {
    float product = a * b;
    asm("" : "+x"(product));
    return product;
}
