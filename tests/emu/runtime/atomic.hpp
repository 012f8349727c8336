// Atomics: checked like a read and a write, done at once, since only one fiber runs.
#pragma once

#include <cmath>

#include "access.hpp"

namespace emu {

template <class T, class Update>
static u64 update(void* address, u64 operand, Update updated) {
    T old, given, result;
    memcpy(&old, address, sizeof(T));
    memcpy(&given, &operand, sizeof(T));
    result = updated(old, given);
    memcpy(address, &result, sizeof(T));
    u64 bits = 0;
    memcpy(&bits, &old, sizeof(T));
    return bits;
}

// PTX ISA, red and atom: in global memory .add.f32 takes subnormal operands and results for zeros of the same sign.
static float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

static bool is_wide(Atomic operation) {
    return operation == Atomic::add_i64 || operation == Atomic::add_f64 || operation == Atomic::exchange_64;
}

}  // namespace emu

extern "C" unsigned long long emu_atomic(void* address, emu::Atomic operation, unsigned long long operand) {
    using namespace emu;
    const void* pc = __builtin_return_address(0);
    if (is_wide(operation)) on_access<3, Kind::atomic>(address, pc);
    else on_access<2, Kind::atomic>(address, pc);
    auto plus = [](auto a, auto b) { return static_cast<decltype(a)>(a + b); };
    auto second = [](auto, auto b) { return b; };
    switch (operation) {
        case Atomic::add_i32: return update<u32>(address, operand, plus);
        case Atomic::add_i64: return update<u64>(address, operand, plus);
        case Atomic::add_f32:
            return update<float>(address, operand, [](float a, float b) { return flushed(flushed(a) + flushed(b)); });
        case Atomic::add_f64: return update<double>(address, operand, plus);
        case Atomic::max_u32: return update<u32>(address, operand, [](u32 a, u32 b) { return std::max(a, b); });
        case Atomic::min_u32: return update<u32>(address, operand, [](u32 a, u32 b) { return std::min(a, b); });
        case Atomic::exchange_32: return update<u32>(address, operand, second);
        case Atomic::exchange_64: return update<u64>(address, operand, second);
    }
    __builtin_unreachable();
}
