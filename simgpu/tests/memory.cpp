// Device memory: poison, limits, stale and foreign pointers, stream-ordered allocation. Run with SIMGPU_MEMORY=1048576.
#include "check.h"

int main() {
  Gpu gpu;
  const Handle s = new_stream();
  size_t free_bytes = 0, total = 0;
  OK(cuMemGetInfo_v2(&free_bytes, &total));
  EQUAL(total, 1 << 20);
  EQUAL(free_bytes, 1 << 20);
  const CUdeviceptr a = device_floats();
  OK(cuMemGetInfo_v2(&free_bytes, &total));
  EQUAL(free_bytes, (1 << 20) - N * 4);
  EQUAL(std::isnan(read_back(a, s)[N - 1]), true);

  CUdeviceptr b = 0;
  EQUAL(cuMemAlloc_v2(&b, 0), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuMemAlloc_v2(&b, 1 << 20), CUDA_ERROR_OUT_OF_MEMORY);
  OK(cuMemAlloc_v2(&b, (1 << 20) - N * 4));
  EQUAL(cuMemAllocAsync(&b, 1, s), CUDA_ERROR_OUT_OF_MEMORY);
  OK(cuMemFree_v2(b));
  EQUAL(cuMemFree_v2(b), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuMemFree_v2(a + 4), CUDA_ERROR_INVALID_VALUE);
  OK(cuMemFree_v2(0));

  // A copy may not leave its allocation, nor take a host pointer for a device's.
  float host[N];
  EQUAL(cuMemcpyHtoD_v2(a + 4, host, N * 4), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuMemcpyHtoD_v2((CUdeviceptr)host, host, 4), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuMemcpyDtoH_v2((void *)a, a, 4), CUDA_ERROR_INVALID_VALUE);
  EQUAL(cuMemsetD8Async(a, 0, N * 4 + 1, s), CUDA_ERROR_INVALID_VALUE);

  // Stream-ordered: a free gives its bytes back when the stream gets there, and an allocation waits for it.
  for (int i = 0; i < 8; i++) {
    OK(cuMemAllocAsync(&b, 600 << 10, s));
    OK(cuMemsetD8Async(b, 1, 600 << 10, s));
    OK(cuMemFreeAsync(b, s));
  }
  OK(cuStreamSynchronize(s));
  OK(cuMemGetInfo_v2(&free_bytes, &total));
  EQUAL(free_bytes, (1 << 20) - N * 4);
  // Shared memory is poisoned for every block.
  TestArgs args{nullptr, (float *)a, 32, 0};
  void *params[] = {&args};
  OK(cuLaunchKernel(gpu.function("test_shared"), 2, 1, 1, 64, 1, 1, 256, s, params, nullptr));
  const std::vector<float> shared = read_back(a, s);
  for (int i = 0; i < 32; i++) EQUAL(std::isnan(shared[i]), true);
}
