/*
 * Attention from C++17, on the CPU: statuses as exceptions, tensors from vectors, a block mask that destroys itself.
 *
 *   c++ -std=c++17 host.cpp -o host_cpp $(flashcupy capi --cflags --libs)
 */
#include <flashcupy.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <functional>
#include <initializer_list>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"

// ---- what a program would keep

class Error : public std::runtime_error {
public:
    explicit Error(flashcupy_status status)
        : std::runtime_error(std::string(flashcupy_status_string(status)) + ": " + flashcupy_last_error()),
          status_(status) {}

    flashcupy_status status() const noexcept { return status_; }

private:
    flashcupy_status status_;
};

void check(flashcupy_status status) {
    if (status != FLASHCUPY_OK) throw Error(status);
}

template <typename T>
constexpr std::uint8_t dtype_code() {
    if constexpr (std::is_same_v<T, bool>) return FLASHCUPY_BOOL;
    else if constexpr (std::is_floating_point_v<T>) return FLASHCUPY_FLOAT;
    else if constexpr (std::is_signed_v<T>) return FLASHCUPY_INT;
    else return FLASHCUPY_UINT;
}

/* Row-major memory with its shape. What tensor() returns points into it. */
template <typename T>
class Array {
public:
    explicit Array(std::vector<std::int64_t> shape)
        : shape_(std::move(shape)),
          size_(static_cast<std::size_t>(
              std::accumulate(shape_.begin(), shape_.end(), std::int64_t{1}, std::multiplies<>()))),
          values_(new T[size_]()) {}

    Array(std::vector<std::int64_t> shape, std::initializer_list<T> values) : Array(std::move(shape)) {
        if (values.size() != size_) throw std::invalid_argument("values do not fill the shape");
        std::copy(values.begin(), values.end(), values_.get());
    }

    flashcupy_tensor tensor() {
        return flashcupy_tensor_of(values_.get(), dtype_code<T>(), 8 * sizeof(T),
                                   static_cast<std::int32_t>(shape_.size()), shape_.data());
    }

    T *data() { return values_.get(); }
    std::size_t size() const { return size_; }

private:
    std::vector<std::int64_t> shape_;
    std::size_t size_;
    std::unique_ptr<T[]> values_;  // not a vector: one of bool has no addresses
};

flashcupy_options options(std::int32_t causal = FLASHCUPY_NOT_CAUSAL) {
    flashcupy_options result{};
    result.struct_size = sizeof result;
    result.causal = causal;
    return result;
}

class BlockMask {
public:
    BlockMask(const flashcupy_block_mask_options &options, Array<bool> &blocks) {
        const auto table = blocks.tensor();
        flashcupy_block_mask *mask = nullptr;
        check(flashcupy_block_mask_from_blocks(&options, &table, nullptr, &mask));
        mask_.reset(mask);
    }

    void update(Array<bool> &blocks) {
        const auto table = blocks.tensor();
        check(flashcupy_block_mask_update_from_blocks(get(), &table, nullptr));
    }

    void check_lists() { check(flashcupy_block_mask_check(get())); }
    flashcupy_block_mask *get() const noexcept { return mask_.get(); }

private:
    struct Destroy {
        void operator()(flashcupy_block_mask *mask) const noexcept { flashcupy_block_mask_destroy(mask); }
    };
    std::unique_ptr<flashcupy_block_mask, Destroy> mask_;
};

/* A call's operands and results. */
struct Attention {
    Array<float> q, k, v, out, lse, dout, dq, dk, dv;

    Attention(std::int64_t q_heads, std::int64_t kv_heads, std::int64_t q_rows, std::int64_t k_rows, std::int64_t d,
              std::int64_t v_dim)
        : q({q_heads, q_rows, d}), k({kv_heads, k_rows, d}), v({kv_heads, k_rows, v_dim}),
          out({q_heads, q_rows, v_dim}), lse({q_heads, q_rows}), dout({q_heads, q_rows, v_dim}),
          dq({q_heads, q_rows, d}), dk({kv_heads, k_rows, d}), dv({kv_heads, k_rows, v_dim}) {}

    void forward(const flashcupy_options &options) {
        const auto tq = q.tensor(), tk = k.tensor(), tv = v.tensor(), tout = out.tensor(), tlse = lse.tensor();
        check(flashcupy_forward(&tq, &tk, &tv, &tout, &tlse, &options, nullptr));
    }

    void backward(const flashcupy_options &options) {
        const auto tq = q.tensor(), tk = k.tensor(), tv = v.tensor(), tout = out.tensor(), tlse = lse.tensor();
        const auto tdout = dout.tensor(), tdq = dq.tensor(), tdk = dk.tensor(), tdv = dv.tensor();
        check(flashcupy_backward(&tq, &tk, &tv, &tout, &tlse, &tdout, nullptr, &tdq, &tdk, &tdv, nullptr, nullptr,
                                 &options, nullptr));
    }
};

// ---- the cases

void fill_inputs(Attention &a, std::uint32_t seed) {
    for (auto *array : {&a.q, &a.k, &a.v, &a.dout}) fill(array->data(), array->size(), seed++);
}

/* Four query heads that share two heads of keys and values in pairs. */
void causal() {
    Attention a(4, 2, 21, 33, 24, 16);
    fill_inputs(a, 1);
    const auto settings = options(FLASHCUPY_BOTTOM_RIGHT);
    a.forward(settings);
    a.backward(settings);
    COMPARE_FORWARD(causal, a.out.data(), a.lse.data());
    COMPARE_BACKWARD(causal, a.dq.data(), a.dk.data(), a.dv.data());
}

/* Sequences of 6, 0 and 13 queries, one after the other without padding. */
void packed() {
    Attention a(2, 1, 20, 30, 16, 16);
    fill_inputs(a, 11);
    Array<std::int32_t> starts_q({4}, {0, 6, 6, 19}), starts_k({4}, {0, 9, 14, 28});
    const auto cu_q = starts_q.tensor(), cu_k = starts_k.tensor();
    auto settings = options(FLASHCUPY_BOTTOM_RIGHT);
    settings.cu_seqlens_q = &cu_q;
    settings.cu_seqlens_k = &cu_k;
    a.forward(settings);
    a.backward(settings);
    COMPARE_FORWARD(packed, a.out.data(), a.lse.data());
    COMPARE_BACKWARD(packed, a.dq.data(), a.dk.data(), a.dv.data());
}

/* A mask from a table of blocks, and other blocks in the same memory. */
void blocks() {
    Attention a(2, 1, 24, 40, 8, 8);
    fill_inputs(a, 21);
    flashcupy_block_mask_options made{};
    made.struct_size = sizeof made;
    made.q_len = 24;
    made.kv_len = 40;
    made.block_q = made.block_k = 16;
    made.capacity = 4;  // the second table has one block more than the first
    Array<bool> first({2, 3}, {true, false, true, false, true, false});
    Array<bool> second({2, 3}, {false, true, false, true, true, true});

    BlockMask mask(made, first);
    auto settings = options();
    settings.block_mask = mask.get();
    a.forward(settings);
    a.backward(settings);
    COMPARE_FORWARD(blocks, a.out.data(), a.lse.data());
    COMPARE_BACKWARD(blocks, a.dq.data(), a.dk.data(), a.dv.data());

    mask.update(second);
    mask.check_lists();
    a.forward(settings);
    a.backward(settings);
    COMPARE_FORWARD(updated, a.out.data(), a.lse.data());
    COMPARE_BACKWARD(updated, a.dq.data(), a.dk.data(), a.dv.data());
}

/* What went wrong arrives as an exception that names it. */
template <typename Call>
void refused(const char *argument, Call call) {
    try {
        call();
    } catch (const Error &error) {
        if (error.status() == FLASHCUPY_INVALID_ARGUMENT &&
            std::string(error.what()).find(argument) != std::string::npos)
            return;
        throw;
    }
    throw std::logic_error(std::string("nothing was said against ") + argument);
}

void errors() {
    Attention a(2, 1, 4, 4, 8, 8);
    auto settings = options();
    settings.scale = 0.5;  // without its flag
    refused("FLASHCUPY_HAS_SCALE", [&] { a.forward(settings); });
    refused("struct_size", [&] { a.forward(flashcupy_options{}); });
    Attention other(3, 2, 4, 4, 8, 8);
    refused("a multiple of the heads of k", [&] { other.forward(options()); });

    flashcupy_block_mask_options made{};
    made.struct_size = sizeof made;
    made.q_len = made.kv_len = 4;
    Array<bool> table({1, 1}, {true});
    settings = options();
    {
        BlockMask mask(made, table);
        settings.block_mask = mask.get();
        a.forward(settings);
    }
    refused("block_mask", [&] { a.forward(settings); });
}

int main() {
    try {
        causal();
        packed();
        blocks();
        errors();
        check(flashcupy_shutdown());
    } catch (const std::exception &error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    std::printf("flashcupy %s: causal, packed, block masks, errors as exceptions: all as expected\n",
                flashcupy_version());
    return 0;
}
