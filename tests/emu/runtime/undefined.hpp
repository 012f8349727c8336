// What -fsanitize=alignment calls, and in the strict build -fsanitize=undefined: each handler's first argument starts
// with file, line and column.
#pragma once

#include "access.hpp"

namespace emu {

struct SourceLocation {
    const char* file;
    u32 line, column;
};

EMU_COLD [[noreturn]] static void undefined(const char* what, const SourceLocation* where) {
    append("undefined: %s at %s:%u, by ", what, where->file, where->line);
    append_thread(current->index);
    finish();
}

struct TypeDescriptor {
    u16 kind, info;
    char name[];
};

struct TypeMismatch {
    SourceLocation where;
    const TypeDescriptor* type;
    u8 log_alignment, use;
};

// Checked by type, before GCC takes a struct apart: a vector load that it makes four loads of is a vector load.
EMU_COLD [[noreturn]] static void type_mismatch(const TypeMismatch* mismatch, u64 address) {
    u64 alignment = u64{1} << mismatch->log_alignment;
    if ((address & (alignment - 1)) == 0) undefined("type_mismatch", &mismatch->where);
    append("misaligned: use of a %s, aligned to %llu, ", mismatch->type->name,
           static_cast<unsigned long long>(alignment));
    append_address(address, static_cast<u32>(alignment));
    append(" (address 0x%llx) by ", static_cast<unsigned long long>(address));
    append_thread(current->index);
    append(" at %s:%u", mismatch->where.file, mismatch->where.line);
    finish();
}

}  // namespace emu

extern "C" void __ubsan_handle_type_mismatch_v1(const emu::TypeMismatch* mismatch, unsigned long long address) {
    emu::type_mismatch(mismatch, address);
}
extern "C" void __ubsan_handle_type_mismatch_v1_abort(const emu::TypeMismatch* mismatch, unsigned long long address) {
    emu::type_mismatch(mismatch, address);
}

#define EMU_UNDEFINED(name)                                                                             \
    extern "C" void __ubsan_handle_##name(const emu::SourceLocation* where) { emu::undefined(#name, where); }     \
    extern "C" void __ubsan_handle_##name##_abort(const emu::SourceLocation* where) { emu::undefined(#name, where); }

EMU_UNDEFINED(add_overflow)
EMU_UNDEFINED(sub_overflow)
EMU_UNDEFINED(mul_overflow)
EMU_UNDEFINED(negate_overflow)
EMU_UNDEFINED(divrem_overflow)
EMU_UNDEFINED(pointer_overflow)
EMU_UNDEFINED(shift_out_of_bounds)
EMU_UNDEFINED(out_of_bounds)
EMU_UNDEFINED(alignment_assumption)
EMU_UNDEFINED(nonnull_arg)
EMU_UNDEFINED(builtin_unreachable)
EMU_UNDEFINED(missing_return)
EMU_UNDEFINED(vla_bound_not_positive)
EMU_UNDEFINED(load_invalid_value)
EMU_UNDEFINED(invalid_builtin)
EMU_UNDEFINED(float_cast_overflow)
