// What the parts of the runtime share: a block in execution. One fiber per CUDA thread, all on one OS thread.
//
// These files are compiled without instrumentation in every flavour; sanitizers learn of fibers and of the order that barriers
// make by their interfaces (SIMGPU_ASAN, SIMGPU_TSAN).
#pragma once
#include "runtime.h"
#include <vector>
#if defined(SIMGPU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace simgpu {
#if defined(SIMGPU_ASAN)
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 4096;
constexpr unsigned WARP = 32;
enum class State : uint8_t { ready, waiting, done };

struct Fiber : ThreadView {
  unsigned linear = 0;
  State state = State::done;
  void *stack_pointer = nullptr;
  char *stack = nullptr;
  bool at_barrier = false;
  const char *at = "";
  std::vector<AsyncCopy> copies;  // with the group of each in `groups`
  std::vector<unsigned> groups;
  size_t oldest = 0;
  unsigned group = 0;
#if defined(SIMGPU_ASAN)
  void *fake_stack = nullptr;
#endif
#if defined(SIMGPU_TSAN)
  void *tsan = nullptr;
#endif
};

// Lanes that have arrived at one warp-wide operation.
struct Meeting {
  unsigned arrived = 0, mask = 0;
  const char *kind = "";
  void *operands[WARP];
  uint64_t generation = 0;
  char order[2];  // addresses for happens-before
};
struct Warp { Meeting by_first_lane[WARP]; };

struct Engine {
  BlockView view;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  unsigned threads = 0, live = 0, at_barrier = 0;
  uint64_t barrier_generation = 0;
  const char *barrier_at = "";
  char barrier_order[2], start, end;
  char *stacks = nullptr;
  unsigned char *shared = nullptr;
  size_t shared_capacity = 0;
  void *scheduler_sp = nullptr;
  const Launch *launch = nullptr;
  const void *args = nullptr;
  Schedule schedule;
  uint64_t random = 1;
  std::string error;
#if defined(SIMGPU_ASAN)
  void *fake_stack = nullptr;
  const void *bottom = nullptr;
  size_t size = 0;
#endif
#if defined(SIMGPU_TSAN)
  void *tsan = nullptr;
#endif
  unsigned below(unsigned n) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random >> 33) % n);
  }
};
extern __thread Engine *engine;
inline Fiber *fiber() { return static_cast<Fiber *>(self); }

inline void release([[maybe_unused]] void *at) {
#if defined(SIMGPU_TSAN)
  __tsan_release(at);
#endif
}
inline void acquire([[maybe_unused]] void *at) {
#if defined(SIMGPU_TSAN)
  __tsan_acquire(at);
#endif
}

// ---- fibers.cpp
void start(Fiber &t);      // the first switch to it enters the kernel
void to_fiber(Fiber *t);   // until it waits or ends
void wait(const char *at); // of the fiber that runs, until somebody makes it ready
std::string place(const Fiber *t);

// ---- collectives.cpp
void open_barrier();
}  // namespace simgpu
