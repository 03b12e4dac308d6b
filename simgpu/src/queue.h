// Work in order: every submitted op knows what must be done before it. Ops run when somebody waits, or at once, as the schedule
// says; which of the ready ones runs next is the schedule's choice.
#pragma once
#include "runtime.h"
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace simgpu {
struct Device;
struct Function;
typedef std::unique_lock<std::mutex> Lock;

// What went wrong, a CUDA error code and a text; code 0: nothing.
struct Failure {
  int code = 0;
  std::string text;
};

// One kernel launch, arguments by value.
struct LaunchCall {
  struct alignas(64) Line { unsigned char bytes[64]; };
  void *function = nullptr;  // the handle, as the caller named it
  Launch launch{};
  std::vector<Line> args;
  void *args_pointer = nullptr;  // for calls that read parameters back
};

struct Work {
  int type = 0;  // NodeType
  Device *device = nullptr;
  std::function<Failure(uint64_t seed)> run;  // null: nothing to do
  bool own_thread = false;                    // calls into the program: must not run inside one of its calls
  std::shared_ptr<LaunchCall> launch;         // of kernels
};

struct Op;
typedef std::shared_ptr<Op> Ref;
struct Op {
  Work work;
  std::vector<Ref> next;
  unsigned missing = 0;  // ops to be done before
  bool done = false;
  uint64_t number = 0;
  std::chrono::steady_clock::time_point when;  // it was done
};

// What the process was told by SIMGPU_SEED, SIMGPU_ORDER, SIMGPU_ASYNC.
const Schedule &schedule();
std::string schedule_text();

std::mutex &queue_mutex();
Ref add_op(Work work, const std::vector<Ref> &after);
bool step(Lock &lock);  // runs one ready op; false: none is ready
void wait_for(Lock &lock, Ref op);
void run_some(Lock &lock);  // what a schedule lets run right after a submission
}  // namespace simgpu
