// The driver's state and what its calls share. Every call holds one lock; work itself runs without it.
#pragma once
#include "cuda_api.h"
#include "queue.h"
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

namespace simgpu {

// Limits of the device that the stand-in claims to be (compute capability 9.0).
constexpr size_t SHARED_BYTES_DEFAULT = 48 << 10, SHARED_BYTES_MAX = 227 << 10, SHARED_BYTES_PER_SM = 228 << 10;
constexpr unsigned THREADS_PER_SM = 2048, BLOCKS_PER_SM = 32, CLUSTER_MAX = 8, CLUSTER_MAX_NON_PORTABLE = 16;

struct Graph;
struct Node;
struct Capture;

struct Device {
  int ordinal = 0;
  size_t used = 0, high = 0;  // bytes of live allocations
  int error = 0;              // sticky: what the first failure left behind, for the rest of the process
  unsigned primary_users = 0, primary_flags = 0;
  uint64_t release_threshold = 0;
  std::vector<Ref> orphans;  // newest ops of streams that were destroyed
};

struct Context {
  Device *device = nullptr;
  bool primary = false;
};

struct Stream {
  Context *context = nullptr;
  unsigned flags = 0;
  int priority = 0;
  uint64_t id = 0;
  bool legacy = false;
  Ref last;  // newest op, null: nothing was ever submitted
  std::shared_ptr<Capture> capture;
  std::vector<Node *> frontier;  // nodes that the next captured op depends on
};

struct Event {
  Context *context = nullptr;
  unsigned flags = 0;
  Ref op;  // of the newest record; null: never recorded
  std::shared_ptr<Capture> capture;  // where the newest record was captured
  std::vector<Node *> frontier;
};

enum class Kind { device, pinned, registered };
struct Allocation {
  size_t bytes;
  Kind kind;
  Device *device;
  unsigned flags;
};

struct Module {
  std::map<std::string, void *> functions;
};
struct Function {
  const Kernel *kernel;
  Module *module;
  int max_dynamic = SHARED_BYTES_DEFAULT;
  bool non_portable_cluster = false;
};

// Live objects of one type by their handle, so that a stale or foreign handle is an error and not a crash.
template <class T> struct Handles {
  std::map<void *, std::shared_ptr<T>> live;
  T *add(std::shared_ptr<T> t) { return (live[t.get()] = t).get(); }
  T *find(void *handle) const {
    const auto i = live.find(handle);
    return i == live.end() ? nullptr : i->second.get();
  }
  std::shared_ptr<T> keep(void *handle) const {
    const auto i = live.find(handle);
    return i == live.end() ? nullptr : i->second;
  }
  bool remove(void *handle) { return live.erase(handle) > 0; }
};

struct GraphExec;
struct Driver {
  bool initialised = false;
  std::vector<Device> devices;
  size_t memory_limit = 0;  // bytes of each device
  int sms = 2;
  std::map<uintptr_t, Allocation> memory;  // by first address
  Handles<Context> contexts;
  Handles<Stream> streams;
  Handles<Event> events;
  Handles<Module> modules;
  Handles<Function> functions;
  Handles<Graph> graphs;
  Handles<Node> nodes;
  Handles<GraphExec> execs;
  std::map<Context *, std::shared_ptr<Stream>> legacy;
  std::map<std::pair<Context *, std::thread::id>, std::shared_ptr<Stream>> per_thread;
  std::vector<std::weak_ptr<Capture>> captures;
  uint64_t ids = 0;
};
Driver &driver();  // under the queue's lock

// ---- contexts
Context *current_context();
void set_current_context(Context *context);

// ---- the frame of a call: lock, initialisation, current context, sticky error, log
void log_call(const char *name, int result);
bool in_host_function();
template <class F> int call(const char *name, F f) {
  int result = CUDA_ERROR_NOT_INITIALIZED;
  {
    Lock lock(queue_mutex());
    if (in_host_function()) result = CUDA_ERROR_NOT_PERMITTED;
    else if (driver().initialised) result = f(lock);
  }
  log_call(name, result);
  return result;
}
template <class F> int in_context(const char *name, F f) {
  return call(name, [&](Lock &lock) -> int {
    Context *context = current_context();
    if (!context || !driver().contexts.find(context)) return CUDA_ERROR_INVALID_CONTEXT;
    if (context->device->error) return context->device->error;
    const int result = f(lock, *context);
    return result ? result : context->device->error;
  });
}

// ---- memory
// The live allocation that holds all of [at, at + bytes), or null.
const Allocation *find_memory(uintptr_t at, size_t bytes);
int take_memory(Lock &lock, Device &device, size_t bytes, void **out);
void give_memory(void *at);

// ---- streams
Stream *find_stream(Context &context, void *handle);
Stream &legacy_stream(Context &context);
// Queues work behind the stream's newest, or captures it.
int submit(Lock &lock, Stream &stream, Work work);
// Queues, never captures; `roots`: further ops that must be done first. Returns the op.
Ref enqueue(Stream &stream, Work work, const std::vector<Ref> &roots = {});
void wait_for_device(Lock &lock, Device &device);

// ---- captures
// Whether this thread may make a call that synchronises or allocates; if not, the captures in its way are invalid.
int forbid_in_capture();
void invalidate(Capture &capture);
// Adds a node behind the stream's frontier.
int capture_work(Stream &stream, Work work);
// Makes the stream's next work depend on the event, where either belongs to a capture.
int wait_in_capture(Stream &stream, Event &event);

// ---- launches
int prepare_launch(void *function, const CUlaunchConfig &config, void **params, void **extra, std::shared_ptr<LaunchCall> *out);
Work kernel_work(Device *device, std::shared_ptr<LaunchCall> launch);
}  // namespace simgpu
