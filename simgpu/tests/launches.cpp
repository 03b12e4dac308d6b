// Devices, names of errors, what a launch is refused for, and what a failed kernel leaves behind. Run with SIMGPU_DEVICES=2.
#include "check.h"
#include <cstring>

static int attribute(int which) {
  int value = -1;
  OK(cuDeviceGetAttribute(&value, which, 0));
  return value;
}

static void devices() {
  int count = 0;
  OK(cuDeviceGetCount(&count));
  EQUAL(count, 2);
  Handle context = nullptr;
  EQUAL(cuDevicePrimaryCtxRetain(&context, 2), CUDA_ERROR_INVALID_DEVICE);
  EQUAL(attribute(75) * 10 + attribute(76), 90);
  EQUAL(attribute(16), 2);
  EQUAL(attribute(97), 232448);
  EQUAL(attribute(115), 1);
  const char *text = nullptr;
  OK(cuGetErrorName(719, &text));
  EQUAL(strcmp(text, "CUDA_ERROR_LAUNCH_FAILED"), 0);
  OK(cuGetErrorString(2, &text));
  EQUAL(strcmp(text, "out of memory"), 0);
  EQUAL(cuGetErrorName(12345, &text), CUDA_ERROR_INVALID_VALUE);
  void *function = nullptr;
  OK(cuGetProcAddress_v2("cuMemAlloc", &function, 13000, 0, nullptr));
  EQUAL(function == (void *)&cuMemAlloc_v2, true);
  EQUAL(cuGetProcAddress_v2("cuNothing", &function, 13000, 0, nullptr), CUDA_ERROR_NOT_FOUND);
}

static void refused(const Gpu &gpu) {
  const Handle f = gpu.function("test_shared"), s = new_stream();
  const CUdeviceptr a = device_floats();
  TestArgs args{nullptr, (float *)a, 0, 0};
  void *params[] = {&args};
  auto launch = [&](unsigned grid, unsigned grid_y, unsigned block, unsigned shared) {
    return cuLaunchKernel(f, grid, grid_y, 1, block, 1, 1, shared, s, params, nullptr);
  };
  OK(launch(1, 1, 1024, 48 << 10));
  EQUAL(launch(0, 1, 32, 0), CUDA_ERROR_INVALID_VALUE);
  EQUAL(launch(1, 65536, 32, 0), CUDA_ERROR_INVALID_VALUE);
  EQUAL(launch(1, 1, 1025, 0), CUDA_ERROR_INVALID_VALUE);
  EQUAL(launch(1, 1, 32, (48 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuFuncSetAttribute(f, 8, (227 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
  OK(cuFuncSetAttribute(f, 8, 227 << 10));
  OK(launch(1, 1, 32, 227 << 10));
  EQUAL(launch(1, 1, 32, (227 << 10) + 1), CUDA_ERROR_INVALID_VALUE);
  Handle none = nullptr;
  EQUAL(cuModuleGetFunction(&none, gpu.module, "no_such_kernel"), CUDA_ERROR_NOT_FOUND);
  size_t offset = 1, bytes = 0;
  OK(cuFuncGetParamInfo(f, 0, &offset, &bytes));
  EQUAL(bytes, sizeof(TestArgs));
  EQUAL(cuFuncGetParamInfo(f, 1, &offset, &bytes), CUDA_ERROR_INVALID_VALUE);
  // Arguments in one buffer: its size must be the struct's.
  bytes = sizeof args;
  void *extra[] = {(void *)1, &args, (void *)2, &bytes, nullptr};
  OK(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, s, nullptr, extra));
  bytes = sizeof args - 8;
  EQUAL(cuLaunchKernel(f, 1, 1, 1, 32, 1, 1, 0, s, nullptr, extra), CUDA_ERROR_INVALID_VALUE);
  // Clusters: at most 8 blocks, which divide the grid.
  CUlaunchAttribute cluster{CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, {}, {}};
  cluster.value.cluster = {2, 1, 1};
  CUlaunchConfig config{4, 1, 1, 32, 1, 1, 0, s, &cluster, 1};
  OK(cuLaunchKernelEx(&config, f, params, nullptr));
  config.grid_x = 5;
  EQUAL(cuLaunchKernelEx(&config, f, params, nullptr), CUDA_ERROR_INVALID_CLUSTER_SIZE);
  config.grid_x = 16, cluster.value.cluster = {16, 1, 1};
  EQUAL(cuLaunchKernelEx(&config, f, params, nullptr), CUDA_ERROR_INVALID_CLUSTER_SIZE);
  int blocks = 0;
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 256, 0));
  EQUAL(blocks, 8);
  OK(cuOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, f, 256, 100 << 10));
  EQUAL(blocks, 2);
  OK(cuStreamSynchronize(s));
  Handle module = nullptr, g = nullptr;
  OK(cuModuleLoadData(&module, "x"));
  OK(cuModuleGetFunction(&g, module, "test_add"));
  OK(cuModuleUnload(module));
  EQUAL(cuLaunchKernel(g, 1, 1, 1, 32, 1, 1, 0, s, params, nullptr), CUDA_ERROR_INVALID_HANDLE);
}

// A deadlocked kernel: its text goes to stderr, and this device answers nothing but its error any more.
static void sticky(const Gpu &gpu) {
  const Handle s = new_stream();
  const CUdeviceptr a = device_floats();
  TestArgs args{};
  void *params[] = {&args};
  int result = cuLaunchKernel(gpu.function("test_deadlock"), 1, 1, 1, 64, 1, 1, 0, s, params, nullptr);
  if (!result) result = cuStreamSynchronize(s);
  EQUAL(result, CUDA_ERROR_LAUNCH_FAILED);
  CUdeviceptr b = 0;
  EQUAL(cuStreamSynchronize(s), CUDA_ERROR_LAUNCH_FAILED);
  EQUAL(cuMemAlloc_v2(&b, 4), CUDA_ERROR_LAUNCH_FAILED);
  EQUAL(cuMemFree_v2(a), CUDA_ERROR_LAUNCH_FAILED);
  Handle event = nullptr;
  EQUAL(cuEventCreate(&event, 0), CUDA_ERROR_LAUNCH_FAILED);
  Handle context = nullptr;
  OK(cuDevicePrimaryCtxRetain(&context, 1));  // the other device is well
  OK(cuCtxSetCurrent(context));
  OK(cuMemAlloc_v2(&b, 4));
  OK(cuMemFree_v2(b));
}

int main() {
  int count = 0;
  EQUAL(cuDeviceGetCount(&count), CUDA_ERROR_NOT_INITIALIZED);
  EQUAL(cuInit(1), CUDA_ERROR_INVALID_VALUE);
  Gpu gpu;
  devices();
  refused(gpu);
  sticky(gpu);
}
