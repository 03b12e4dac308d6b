#include "queue.h"
#include "driver.h"
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>

namespace simgpu {
namespace {
constexpr size_t PENDING_MAX = 4096;  // a launch blocks when a real queue is full, too
constexpr auto HOST_FUNCTIONS_WAIT = std::chrono::milliseconds(10);

struct Queue {
  std::vector<Ref> ready;
  size_t pending = 0, running = 0, host_functions = 0;  // the last: of those pending
  uint64_t numbers = 0, random = 0;
  std::condition_variable changed;
  unsigned below(unsigned n) {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return (unsigned)((random >> 33) % n);
  }
};
Queue &queue() {
  static Queue *q = new Queue;  // never destroyed: threads of the program may outlive static objects
  return *q;
}
thread_local bool inside_host_function = false;

uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

int choice(const char *name, std::initializer_list<const char *> words, int otherwise) {
  const char *value = getenv(name);
  if (!value) return otherwise;
  int i = 0;
  for (const char *word : words) {
    if (!strcmp(word, value)) return i;
    i++;
  }
  fprintf(stderr, "simgpu: %s=%s is not known; expected", name, value);
  for (const char *word : words) fprintf(stderr, " %s", word);
  fprintf(stderr, "\n");
  exit(2);
}

void finish(Op &op) {
  op.done = true;
  op.when = std::chrono::steady_clock::now();
  for (const Ref &next : op.next) {
    if (--next->missing == 0) queue().ready.push_back(next);
  }
  op.next.clear();
  if (op.work.own_thread) queue().host_functions--;
  op.work = Work{};
  queue().pending--;
  queue().changed.notify_all();
}

// Without the lock.
Failure execute(Op &op) {
  return op.work.run ? op.work.run(mix(schedule().seed ^ mix(op.number))) : Failure{};
}

void report(Device *device, const Failure &failure) {
  if (!failure.code) return;
  if (device && !device->error) device->error = failure.code;
  fprintf(stderr, "simgpu: %s; %s\n", failure.text.c_str(), schedule_text().c_str());
}

void run_own_thread(const Ref &op) {
  std::thread([op] {
    inside_host_function = true;
    const Failure failure = execute(*op);
    Lock lock(queue_mutex());
    report(op->work.device, failure);
    queue().running--;
    finish(*op);
  }).detach();
}

// Host functions may wait for those of other processes, whose programs may wait for this one before they wait for their device: a
// device that only goes on when its own program waits would hang where hardware does not. So, from the first host function on, a
// thread lets the device go on by itself while any is pending, a little later than the program could.
void go_on() {
  Lock lock(queue_mutex());
  for (;;) {
    queue().changed.wait(lock, [] { return queue().host_functions > 0; });
    queue().changed.wait_for(lock, HOST_FUNCTIONS_WAIT);
    while (queue().host_functions && step(lock)) {}
  }
}
}  // namespace

bool in_host_function() { return inside_host_function; }

std::mutex &queue_mutex() {
  static std::mutex *m = new std::mutex;
  return *m;
}

const Schedule &schedule() {
  static const Schedule s = [] {
    Schedule s;
    s.order = (Schedule::Order)choice("SIMGPU_ORDER", {"forward", "reverse", "random"}, Schedule::random);
    s.async = (Schedule::Async)choice("SIMGPU_ASYNC", {"late", "early", "mixed"}, Schedule::mixed);
    const char *seed = getenv("SIMGPU_SEED");
    s.seed = seed ? strtoull(seed, nullptr, 0) : std::random_device()() ^ (uint64_t)getpid() << 32;
    queue().random = mix(s.seed);
    return s;
  }();
  return s;
}

std::string schedule_text() {
  static const char *const orders[] = {"forward", "reverse", "random"}, *const landings[] = {"late", "early", "mixed"};
  return "again with SIMGPU_SEED=" + std::to_string(schedule().seed) + " SIMGPU_ORDER=" + orders[schedule().order] +
         " SIMGPU_ASYNC=" + landings[schedule().async];
}

Ref add_op(Work work, const std::vector<Ref> &after) {
  Ref op = std::make_shared<Op>();
  op->work = std::move(work);
  op->number = queue().numbers++;
  for (const Ref &before : after) {
    if (before && !before->done) before->next.push_back(op), op->missing++;
  }
  queue().pending++;
  if (op->work.own_thread) {
    static const bool started = (std::thread(go_on).detach(), true);
    (void)started;
    queue().host_functions++;
    queue().changed.notify_all();
  }
  if (!op->missing) queue().ready.push_back(op);
  return op;
}

bool step(Lock &lock) {
  Queue &q = queue();
  const Schedule &s = schedule();
  if (q.ready.empty()) return false;
  size_t chosen = 0;
  if (s.order == Schedule::random) {
    chosen = q.below(q.ready.size());
  } else {
    for (size_t i = 1; i < q.ready.size(); i++) {
      if ((q.ready[i]->number < q.ready[chosen]->number) == (s.order == Schedule::forward)) chosen = i;
    }
  }
  const Ref op = q.ready[chosen];
  q.ready[chosen] = q.ready.back();
  q.ready.pop_back();
  Device *device = op->work.device;
  if (!op->work.run || (device && device->error)) {  // a broken device does nothing more
    finish(*op);
    return true;
  }
  q.running++;
  if (op->work.own_thread) {
    run_own_thread(op);
    return true;
  }
  lock.unlock();
  const Failure failure = execute(*op);
  lock.lock();
  q.running--;
  report(device, failure);
  finish(*op);
  return true;
}

void wait_for(Lock &lock, Ref op) {
  while (op && !op->done) {
    if (step(lock)) continue;
    if (!queue().running) fprintf(stderr, "simgpu: internal error: nothing can run, yet an op waits\n"), abort();
    queue().changed.wait(lock);
  }
}

void run_some(Lock &lock) {
  Queue &q = queue();
  const Schedule &s = schedule();
  while (q.pending > PENDING_MAX && step(lock)) {}
  if (s.async == Schedule::early) {
    while (step(lock)) {}
  } else if (s.async == Schedule::mixed) {
    for (unsigned n = q.below(2) ? q.below(4) : 0; n && step(lock); n--) {}
  }
}
}  // namespace simgpu
