// Fibers: a stack per CUDA thread, and the switch between two of them.
#pragma once

#include <sys/mman.h>

#include "machine.hpp"

namespace emu {

constexpr u64 stack_bytes = 256 << 10;
constexpr u64 page_bytes = 4096;

static void thread_main();

#if defined(__x86_64__)

extern "C" void emu_switch(void** save, void* resume);
extern "C" void emu_first_step();
asm(R"(
    .text
    .p2align 4
    .type emu_switch, @function
    .hidden emu_switch
    .globl emu_switch
emu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size emu_switch, .-emu_switch

    .type emu_first_step, @function
    .hidden emu_first_step
    .globl emu_first_step
emu_first_step:
    xorl %ebp, %ebp
    callq *%rbx
    ud2
    .size emu_first_step, .-emu_first_step
)");

static void switch_fiber(void** save, void* resume) { emu_switch(save, resume); }

// The frame that emu_switch pops: r15, r14, r13, r12, rbx, rbp, then the address it returns to.
static void* fresh_fiber(u32, u64 top) {
    void** frame = reinterpret_cast<void**>(top & ~u64{15}) - 9;  // the stack is aligned where emu_first_step calls
    frame[4] = reinterpret_cast<void*>(thread_main);
    frame[5] = nullptr;
    frame[6] = reinterpret_cast<void*>(emu_first_step);
    return frame;
}

#else

}  // namespace emu
#include <ucontext.h>
namespace emu {

static ucontext_t contexts[most_threads], main_context;

// A "stack pointer" is the context; the main one is saved on its first switch.
static void switch_fiber(void** save, void* resume) {
    ucontext_t* from = save == &main_stack_pointer ? &main_context : static_cast<ucontext_t*>(*save);
    *save = from;
    swapcontext(from, static_cast<ucontext_t*>(resume));
}

static void* fresh_fiber(u32 index, u64 top) {
    ucontext_t* context = &contexts[index];
    getcontext(context);
    context->uc_stack.ss_sp = reinterpret_cast<void*>(threads[index].stack_begin);
    context->uc_stack.ss_size = (top & ~u64{15}) - threads[index].stack_begin;
    context->uc_link = nullptr;
    makecontext(context, thread_main, 0);
    return context;
}

#endif

static u64 stacks_begin;

// Each stack has a page below it that faults, made when the stack is first needed.
static void reserve_stacks(u32 count) {
    static u32 guarded = 0;
    if (stacks_begin == 0) {
        void* memory = mmap(nullptr, most_threads * stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) __builtin_trap();
        stacks_begin = reinterpret_cast<u64>(memory);
    }
    for (; guarded < count; ++guarded) {
        mprotect(reinterpret_cast<void*>(stacks_begin + guarded * stack_bytes), page_bytes, PROT_NONE);
        threads[guarded].stack_begin = stacks_begin + guarded * stack_bytes + page_bytes;
        threads[guarded].stack_end = stacks_begin + (guarded + 1) * stack_bytes;
    }
}

// Tops at different distances from the ends, or all hot lines would compete for the same few sets of the caches.
static void prepare_fiber(u32 index) {
    u64 colour = (index * 576) % (64 << 10);
    threads[index].stack_pointer = fresh_fiber(index, threads[index].stack_end - colour);
}

static void switch_to(u32 index) {
    Thread* from = current;
    current = &threads[index];
    if (from == current) return;
    ++launch->switches;
    switch_fiber(&from->stack_pointer, current->stack_pointer);
}

[[noreturn]] static void back_to_main() {
    void* abandoned = nullptr;
#if !defined(__x86_64__)
    abandoned = current->stack_pointer;
#endif
    switch_fiber(&abandoned, main_stack_pointer);
    __builtin_unreachable();
}

}  // namespace emu
