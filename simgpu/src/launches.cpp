// Launches of kernels: what a device would refuse is refused at the call.
#include "driver.h"

namespace simgpu {
namespace {
constexpr uintptr_t PARAM_END = 0, PARAM_BUFFER = 1, PARAM_BUFFER_SIZE = 2;

// The bytes of the argument struct, or null.
const void *find_args(const Kernel &kernel, void **params, void **extra) {
  if (!params == !extra) return nullptr;
  if (params) return params[0];
  const void *buffer = nullptr;
  size_t bytes = 0;
  for (size_t i = 0; (uintptr_t)extra[i] != PARAM_END; i += 2) {
    if ((uintptr_t)extra[i] == PARAM_BUFFER) buffer = extra[i + 1];
    else if ((uintptr_t)extra[i] == PARAM_BUFFER_SIZE) bytes = *(const size_t *)extra[i + 1];
    else return nullptr;
  }
  return bytes == kernel.args_bytes ? buffer : nullptr;
}

int check_attributes(const Function &f, const CUlaunchConfig &c) {
  for (unsigned i = 0; i < c.attribute_count; i++) {
    const CUlaunchAttribute &a = c.attributes[i];
    if (a.id == 7 || a.id == 12 || a.id == 13) return CUDA_ERROR_NOT_SUPPORTED;  // events of a launch, updates by the device
    if (a.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && a.value.cooperative) return CUDA_ERROR_NOT_SUPPORTED;
    if (a.id < 0 || a.id > 16) return CUDA_ERROR_INVALID_VALUE;
    if (a.id != CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) continue;
    const auto &d = a.value.cluster;
    if (!d.x || !d.y || !d.z || c.grid_x % d.x || c.grid_y % d.y || c.grid_z % d.z) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
    if ((uint64_t)d.x * d.y * d.z > (f.non_portable_cluster ? CLUSTER_MAX_NON_PORTABLE : CLUSTER_MAX)) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  }
  return CUDA_SUCCESS;
}
}  // namespace

int prepare_launch(void *handle, const CUlaunchConfig &c, void **params, void **extra, std::shared_ptr<LaunchCall> *out) {
  const Function *f = driver().functions.find(handle);
  if (!f) return CUDA_ERROR_INVALID_HANDLE;
  if (!c.grid_x || !c.grid_y || !c.grid_z || c.grid_x > 0x7fffffffu || c.grid_y > 65535 || c.grid_z > 65535) return CUDA_ERROR_INVALID_VALUE;
  if (!c.block_x || !c.block_y || !c.block_z || c.block_x > 1024 || c.block_y > 1024 || c.block_z > 64) return CUDA_ERROR_INVALID_VALUE;
  if ((size_t)c.block_x * c.block_y * c.block_z > MAX_THREADS) return CUDA_ERROR_INVALID_VALUE;
  if (c.shared_bytes > (size_t)f->max_dynamic) return CUDA_ERROR_INVALID_VALUE;
  if (const int error = check_attributes(*f, c)) return error;
  const void *args = find_args(*f->kernel, params, extra);
  if (!args) return CUDA_ERROR_INVALID_VALUE;
  auto call = std::make_shared<LaunchCall>();
  call->function = handle;
  call->launch = {f->kernel, {c.grid_x, c.grid_y, c.grid_z}, {c.block_x, c.block_y, c.block_z}, c.shared_bytes};
  call->args.resize((f->kernel->args_bytes + sizeof(LaunchCall::Line) - 1) / sizeof(LaunchCall::Line));
  memcpy(call->args.data(), args, f->kernel->args_bytes);
  *out = call;
  return CUDA_SUCCESS;
}

Work kernel_work(Device *device, std::shared_ptr<LaunchCall> launch) {
  Work work;
  work.type = CU_GRAPH_NODE_TYPE_KERNEL;
  work.device = device;
  work.launch = launch;
  work.run = [launch](uint64_t seed) -> Failure {
    Schedule s = schedule();
    s.seed = seed;
    const std::string error = run(launch->launch, launch->args.data(), s);
    if (error.empty()) return {};
    return {CUDA_ERROR_LAUNCH_FAILED, std::string("kernel ") + launch->launch.kernel->name + ": " + error};
  };
  return work;
}

namespace {
int launch(const char *name, const CUlaunchConfig &config, void *function, void **params, void **extra) {
  return in_context(name, [&](Lock &lock, Context &context) -> int {
    Stream *stream = find_stream(context, config.stream);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    std::shared_ptr<LaunchCall> call;
    if (const int error = prepare_launch(function, config, params, extra, &call)) return error;
    return submit(lock, *stream, kernel_work(context.device, call));
  });
}
}  // namespace
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared_bytes,
                        void *stream, void **params, void **extra) {
  return launch(__func__, {gx, gy, gz, bx, by, bz, shared_bytes, stream, nullptr, 0}, function, params, extra);
}
CUDA_API cuLaunchKernelEx(const CUlaunchConfig *config, void *function, void **params, void **extra) {
  if (!config) return CUDA_ERROR_INVALID_VALUE;
  return launch(__func__, *config, function, params, extra);
}
// Blocks run one after another: what they would tell each other within one launch is not supported.
CUDA_API cuLaunchCooperativeKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **) {
  return call(__func__, [](Lock &) { return CUDA_ERROR_NOT_SUPPORTED; });
}
