// In the place of CuPy's header, which includes CUDA's.
#pragma once

class bfloat16 {
public:
    bfloat16() = default;
    bfloat16(float value) {
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        bits += value == value ? 0x7fff + (bits >> 16 & 1) : 0;
        bits_ = static_cast<uint16_t>(bits >> 16);
    }
    operator float() const {
        const uint32_t bits = static_cast<uint32_t>(bits_) << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

private:
    uint16_t bits_;
};
