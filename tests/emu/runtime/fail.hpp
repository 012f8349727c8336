// Reports. A failure leaves all fibers where they are and goes back to the launch, which returns the text.
#pragma once

#include <cstdarg>
#include <cstdio>

#include "fiber.hpp"

namespace emu {

static void append(const char* format, ...) __attribute__((format(printf, 1, 2)));
static void append(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int wrote = vsnprintf(launch->report, launch->report_bytes, format, arguments);
    va_end(arguments);
    u64 bytes = static_cast<u64>(wrote) < launch->report_bytes ? wrote : launch->report_bytes;
    launch->report += bytes;
    launch->report_bytes -= bytes;
}

// Python replaces {pc:...}, an offset in the kernel's binary, by file and line.
static void append_place(u64 image_offset) {
    if (image_offset != 0) append(" at {pc:%llx}", static_cast<unsigned long long>(image_offset));
}

static void append_thread(u32 thread) {
    append("thread %u (warp %u, lane %u)", thread, thread / warp_size, thread % warp_size);
}

static void append_site(Site site) { append(" at %s:%d", site.file, site.line); }

// A report starts with its kind; `finish` names the kernel and block, and does not return.
[[noreturn]] static void finish() {
    append("; kernel %s, block %u", launch->name, current_block);
    back_to_main();
}

static u64 image_offset(const void* pc) {
    u64 offset = reinterpret_cast<u64>(pc) - launch->image_begin;
    return offset < launch->image_end - launch->image_begin ? offset : 0;
}

}  // namespace emu
