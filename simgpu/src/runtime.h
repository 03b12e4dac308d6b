// Between the scheduler of blocks and the driver: how a launch is run.
#pragma once
#include "simgpu.h"
#include <string>

namespace simgpu {

// Choices that a legal program must not depend on.
struct Schedule {
  enum Order { forward, reverse, random } order = forward;
  enum Async { late, early, mixed } async = late;
  uint64_t seed = 1;
};

struct Launch {
  const Kernel *kernel;
  Index grid, block;
  size_t shared_bytes;
};

constexpr size_t MAX_THREADS = 1024;

const Kernel *find_kernel(const std::string &name);
const Kernel *first_kernel();  // then `next`

// Runs a kernel to its end on the calling OS thread. Empty on success, else what went wrong, where, in which block and thread.
std::string run(const Launch &launch, const void *args, const Schedule &schedule);
}  // namespace simgpu
