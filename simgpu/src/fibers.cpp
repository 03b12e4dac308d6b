// Fibers: their switches, how they begin and end.
#include "engine.h"
#include <cstdio>
#include <cstdlib>
#if defined(SIMGPU_ASAN)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simgpu {
__thread Engine *engine = nullptr;
thread_local ThreadView *self = nullptr;

// Saves the callee-saved registers and the stack pointer of one side, takes up the other.
extern "C" __attribute__((naked, noinline, noipa)) void simgpu_switch(void **, void *) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

namespace {
__attribute__((noinline)) void to_scheduler() {
  Fiber *t = fiber();
  Engine *e = engine;
#if defined(SIMGPU_ASAN)
  __sanitizer_start_switch_fiber(t->state == State::done ? nullptr : &t->fake_stack, e->bottom, e->size);
#endif
#if defined(SIMGPU_TSAN)
  __tsan_switch_to_fiber(e->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  simgpu_switch(&t->stack_pointer, e->scheduler_sp);
#if defined(SIMGPU_ASAN)
  __sanitizer_finish_switch_fiber(t->fake_stack, &e->bottom, &e->size);
#endif
}
}  // namespace

__attribute__((noinline)) void to_fiber(Fiber *t) {
  Engine *e = engine;
  self = t;
#if defined(SIMGPU_ASAN)
  __sanitizer_start_switch_fiber(&e->fake_stack, t->stack, STACK);
#endif
#if defined(SIMGPU_TSAN)
  __tsan_switch_to_fiber(t->tsan, __tsan_switch_to_fiber_no_sync);
#endif
  simgpu_switch(&e->scheduler_sp, t->stack_pointer);
#if defined(SIMGPU_ASAN)
  __sanitizer_finish_switch_fiber(e->fake_stack, nullptr, nullptr);
#endif
}

void wait(const char *at) {
  fiber()->at = at;
  fiber()->state = State::waiting;
  to_scheduler();
}

std::string place(const Fiber *t) {
  char text[160];
  const Index b = engine->view.index, i = t->tid;
  snprintf(text, sizeof text, " (%s, block %u,%u,%u thread %u,%u,%u)", engine->launch->kernel->name, b.x, b.y, b.z, i.x, i.y, i.z);
  return text;
}

namespace {
__attribute__((noinline)) void fiber_main() {
  Engine *e = engine;
#if defined(SIMGPU_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &e->bottom, &e->size);
#endif
  acquire(&e->start);
  e->launch->kernel->call(e->args);
  release(&e->end);
  Fiber *t = fiber();
  t->state = State::done;
  e->live--;
  if (t->oldest < t->copies.size() && e->error.empty()) {
    e->error = "cp.async still outstanding when the thread ended" + place(t);
  }
  if (e->at_barrier && e->error.empty()) {
    e->error = std::string("__syncthreads() at ") + e->barrier_at + " not reached by all threads" + place(t);
  }
  to_scheduler();
  abort();
}
}  // namespace

void start(Fiber &t) {
  t.state = State::ready;
  t.at_barrier = false;
  t.copies.clear();
  t.groups.clear();
  t.oldest = t.group = 0;
  void **sp = (void **)(t.stack + STACK);
  *--sp = nullptr;
  *--sp = (void *)&fiber_main;
  for (int i = 0; i < 6; i++) *--sp = nullptr;
  t.stack_pointer = sp;
}
}  // namespace simgpu
