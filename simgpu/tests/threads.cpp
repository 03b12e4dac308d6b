// Several threads of a program, each with a stream of its own, kernels at the same time.
#include "check.h"
#include <thread>

int main() {
  Gpu gpu;
  std::vector<std::thread> threads;
  for (int id = 0; id < 4; id++) {
    threads.emplace_back([&gpu, id] {
      OK(cuCtxSetCurrent(gpu.context));
      const Handle s = new_stream();
      CUdeviceptr a = 0;
      OK(cuMemAllocAsync(&a, N * 4, s));
      OK(gpu.add(0, a, id, s));
      for (int i = 0; i < 10; i++) {
        OK(gpu.add(a, a, 10, s));
        if (i % 3 == 0) EQUAL(all_are(read_back(a, s), id + 10 * (i + 1)), true);
      }
      EQUAL(all_are(read_back(a, s), id + 100), true);
      OK(cuMemFreeAsync(a, s));
      OK(cuStreamSynchronize(s));
      OK(cuStreamDestroy_v2(s));
    });
  }
  for (std::thread &t : threads) t.join();
  OK(cuCtxSynchronize());
  OK(cuDevicePrimaryCtxRelease_v2(0));
  EQUAL(cuCtxSynchronize(), CUDA_ERROR_INVALID_CONTEXT);
}
