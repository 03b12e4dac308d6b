// Runs blocks: one after another on one OS thread, in the order of the schedule.
#include "engine.h"
#include <sys/mman.h>
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#if defined(SIMGPU_ASAN)
#include <sanitizer/asan_interface.h>
#endif

extern thread_local char simgpu_shared_begin[], simgpu_shared_end[];

namespace simgpu {
namespace {
void order(unsigned *to, unsigned n) {
  for (unsigned i = 0; i < n; i++) to[i] = engine->schedule.order == Schedule::reverse ? n - 1 - i : i;
  if (engine->schedule.order == Schedule::random) {
    for (unsigned i = n; i > 1; i--) std::swap(to[i - 1], to[engine->below(i)]);
  }
}

void run_block(Engine &e, Index index) {
  e.view.index = index;
  e.live = e.threads;
  e.at_barrier = 0;
  memset(e.shared, 0xff, e.launch->shared_bytes);  // NaN: uninitialised shared memory shows
#if defined(SIMGPU_TSAN)
  e.tsan = __tsan_get_current_fiber();
#endif
  release(&e.start);
  for (unsigned i = 0; i < e.threads; i++) start(e.fibers[i]);
  for (Warp &w : e.warps)
    for (Meeting &m : w.by_first_lane) m.arrived = 0;
  unsigned warps[MAX_THREADS / WARP], lanes[WARP];
  while (e.live && e.error.empty()) {
    bool moved = false;
    order(warps, (e.threads + WARP - 1) / WARP);
    for (unsigned w = 0; w * WARP < e.threads; w++) {
      const unsigned base = warps[w] * WARP, n = e.threads - base < WARP ? e.threads - base : WARP;
      for (bool again = true; again && e.error.empty();) {  // stay with a warp until all its lanes wait
        again = false;
        order(lanes, n);
        for (unsigned l = 0; l < n && e.error.empty(); l++) {
          Fiber &t = e.fibers[base + lanes[l]];
          if (t.state == State::ready) to_fiber(&t), again = moved = true;
        }
      }
    }
    for (unsigned i = 0; !moved && e.error.empty() && i < e.threads; i++) {
      if (e.fibers[i].state == State::waiting) e.error = std::string("deadlock: a thread waits at ") + e.fibers[i].at + place(&e.fibers[i]);
    }
  }
  acquire(&e.end);
}

void make_room(Engine &e, const Launch &launch) {
  e.threads = launch.block.x * launch.block.y * launch.block.z;
  e.warps.resize((e.threads + WARP - 1) / WARP);
  if (!e.stacks) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    e.stacks = (char *)mmap(nullptr, (STACK + GUARD) * MAX_THREADS, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (e.stacks == MAP_FAILED) perror("simgpu: stacks"), abort();
    for (size_t i = 0; i < MAX_THREADS; i++) mprotect(e.stacks + i * (STACK + GUARD), GUARD, PROT_NONE);
  }
  const size_t before = e.fibers.size();
  if (before < e.threads) e.fibers.resize(e.threads);
  for (size_t i = before; i < e.fibers.size(); i++) {
    e.fibers[i].linear = i;
    e.fibers[i].stack = e.stacks + i * (STACK + GUARD) + GUARD;
#if defined(SIMGPU_TSAN)
    e.fibers[i].tsan = __tsan_create_fiber(0);
#endif
  }
  for (unsigned i = 0; i < e.threads; i++) {
    Fiber &t = e.fibers[i];
    t.tid = {i % launch.block.x, i / launch.block.x % launch.block.y, i / (launch.block.x * launch.block.y)};
    t.lane = i % WARP;
    t.block = &e.view;
  }
  free(e.shared);  // made anew, so that its end is where the launch says and redzones are exact
  const size_t rounded = (launch.shared_bytes + 1024) / 1024 * 1024;
  e.shared = (unsigned char *)aligned_alloc(1024, rounded);
#if defined(SIMGPU_ASAN)
  __asan_poison_memory_region(e.shared + launch.shared_bytes, rounded - launch.shared_bytes);
#endif
  e.view = {{}, launch.block, launch.grid, e.shared, launch.shared_bytes};
}

Kernel *&kernels() {
  static Kernel *head = nullptr;
  return head;
}
}  // namespace

Kernel::Kernel(const char *name, void (*call)(const void *), size_t args_bytes)
    : name(name), call(call), args_bytes(args_bytes), next(kernels()) {
  kernels() = this;
}

const Kernel *first_kernel() { return kernels(); }

const Kernel *find_kernel(const std::string &name) {
  for (const Kernel *k = kernels(); k; k = k->next)
    if (name == k->name) return k;
  return nullptr;
}

namespace {
// Engines are never given back: fibers of sanitizers outlive a launch, and a thousand stacks are dear. Threads take turns.
struct Pool {
  std::mutex mutex;
  std::vector<Engine *> idle;
};
Pool &pool() {
  static Pool *p = new Pool;
  return *p;
}
struct Lease {
#if defined(SIMGPU_ASAN)
  std::unique_lock<std::mutex> alone{one_at_a_time()};  // `__shared__` is one variable for all threads in this flavour
  static std::mutex &one_at_a_time() {
    static std::mutex *m = new std::mutex;
    return *m;
  }
#endif
  Lease() {
    std::lock_guard<std::mutex> hold(pool().mutex);
    if (pool().idle.empty()) pool().idle.push_back(new Engine);
    engine = pool().idle.back();
    pool().idle.pop_back();
  }
  ~Lease() {
    std::lock_guard<std::mutex> hold(pool().mutex);
    pool().idle.push_back(engine);
    engine = nullptr, self = nullptr;
  }
};

// Static shared arrays hold NaN when a launch begins (dynamic ones: when a block begins).
void poison_static_shared() {
#if !defined(SIMGPU_ASAN)  // there they lie among other variables
  char *at = simgpu_shared_begin;
  size_t bytes = simgpu_shared_end - at;
  if (simgpu_shared_end < at) fprintf(stderr, "simgpu: internal error: linked in another order\n"), abort();
  asm volatile("rep stosb" : "+D"(at), "+c"(bytes) : "a"(0xff) : "memory");  // no call that a sanitizer watches
#endif
}

size_t common_divisor(size_t a, size_t b) { return b ? common_divisor(b, a % b) : a; }
}  // namespace

std::string run(const Launch &launch, const void *args, const Schedule &schedule) {
  const Lease lease;
  Engine &e = *engine;
  e.launch = &launch;
  e.args = args;
  e.schedule = schedule;
  e.random = schedule.seed * 2 + 1;
  e.error.clear();
  make_room(e, launch);
  poison_static_shared();
  const size_t blocks = (size_t)launch.grid.x * launch.grid.y * launch.grid.z;
  size_t first = 0, stride = 1;  // of the walk over the blocks
  if (schedule.order == Schedule::reverse) first = blocks - 1, stride = blocks - 1;
  if (schedule.order == Schedule::random && blocks > 1) {
    first = e.below(blocks);
    do stride = 1 + e.below(blocks - 1);
    while (common_divisor(stride, blocks) != 1);
  }
  size_t b = first;
  for (size_t i = 0; i < blocks && e.error.empty(); i++, b = (b + stride) % blocks) {
    run_block(e, {(unsigned)(b % launch.grid.x), (unsigned)(b / launch.grid.x % launch.grid.y), (unsigned)(b / launch.grid.x / launch.grid.y)});
  }
  return e.error;
}
}  // namespace simgpu

// A launch without a driver, for tests that choose the schedule: order 0 forward, 1 reverse, 2 random; async 0 late, 1 early,
// 2 mixed. Returns 0, or 1 with the error's text; 2 where there is no such kernel or its argument struct has another size.
extern "C" __attribute__((visibility("default"))) int simgpu_launch(const char *name, const unsigned *grid, unsigned block,
                                                                    unsigned shared_bytes, const void *args, size_t args_bytes,
                                                                    int order, int async, uint64_t seed, char *error, size_t error_bytes) {
  using namespace simgpu;
  const Kernel *kernel = find_kernel(name);
  if (!kernel || kernel->args_bytes != args_bytes) {
    snprintf(error, error_bytes, "%s: %s", name, kernel ? "the argument struct has another size" : "no such kernel");
    return 2;
  }
  const Schedule schedule{(Schedule::Order)order, (Schedule::Async)async, seed};
  const Launch launch{kernel, {grid[0], grid[1], grid[2]}, {block, 1, 1}, shared_bytes};
  const std::string failure = run(launch, args, schedule);
  snprintf(error, error_bytes, "%s", failure.c_str());
  return failure.empty() ? 0 : 1;
}
