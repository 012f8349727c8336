// What tests/emu/ptx/ calls. The functions are in the runtime library, which kernels are linked against.
#pragma once

namespace emu {

// Where a collective is called, as its caller sees it: a default argument `emu::Site site = emu::here()`.
struct Site {
    const char* file;
    int line;
};

constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

enum class Mma : unsigned { f16, bf16, tf32 };

// Passed in registers, so that nobody's memory is touched.
struct Words {
    unsigned w0, w1, w2, w3;
};
struct Floats {
    float f0, f1, f2, f3;
};

enum class Atomic : unsigned { add_i32, add_i64, add_f32, add_f64, max_u32, min_u32, exchange_32, exchange_64 };

// The bits of a value of up to 8 bytes, in registers: no access of memory that the race detector would see.
template <class T>
inline __attribute__((always_inline)) unsigned long long bits_of(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a register has 32 or 64 bits");
    if constexpr (sizeof(T) == 4) return __builtin_bit_cast(unsigned, value);
    else return __builtin_bit_cast(unsigned long long, value);
}

template <class T>
inline __attribute__((always_inline)) T from_bits(unsigned long long bits) {
    if constexpr (sizeof(T) == 4) return __builtin_bit_cast(T, static_cast<unsigned>(bits));
    else return __builtin_bit_cast(T, bits);
}

}  // namespace emu

extern "C" {

// A fiber stays the same thread of the same block as long as it lives: hence const.
unsigned emu_thread_index() __attribute__((const));
unsigned emu_block_index() __attribute__((const));
unsigned emu_block_count() __attribute__((const));

// Refuses a struct larger than what the launch declared.
unsigned char* emu_shared_memory(unsigned long long bytes) __attribute__((const));

void emu_block_sync(emu::Site site);
void emu_warp_sync(emu::Site site);
unsigned long long emu_shuffle_xor(unsigned long long bits, unsigned lane_mask, emu::Site site);
bool emu_warp_any(bool condition, emu::Site site);
unsigned emu_warp_ballot(bool condition, emu::Site site);

// The fragments of one lane: of A (a0 to a3), of B (b0, b1), of C (c); the result is D's.
emu::Floats emu_mma(emu::Mma kind, unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1,
                    emu::Floats c, emu::Site site);
emu::Words emu_load_matrices(const void* row, bool transposed, emu::Site site);

void emu_copy_async(void* shared, const void* global, unsigned size, unsigned bytes);
void emu_copy_async_commit();
void emu_copy_async_wait(unsigned pending);

// Relaxed, of device scope: atomics do not race with each other, and order nothing. Returns the old bits.
unsigned long long emu_atomic(void* address, emu::Atomic operation, unsigned long long operand);
}
