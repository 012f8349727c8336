// In the place of CuPy's header, which includes CUDA's.
#pragma once

class float16 {
public:
    float16() = default;
    template <class T>
    float16(T value) : value_(static_cast<_Float16>(static_cast<float>(value))) {}
    operator float() const { return static_cast<float>(value_); }

private:
    _Float16 value_;
};
