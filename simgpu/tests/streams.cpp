// Order in streams and between them, host callbacks, copies from page-locked and pageable memory.
#include "check.h"
#include <atomic>
#include <cstring>

static void one_stream_is_a_queue(const Gpu &gpu) {
  const Handle s = new_stream();
  const CUdeviceptr a = device_floats();
  OK(cuMemsetD32Async(a, 0, N, s));
  for (int i = 0; i < 20; i++) OK(gpu.add(a, a, 1, s));
  EQUAL(all_are(read_back(a, s), 20), true);
  OK(cuStreamQuery(s));
  OK(cuStreamDestroy_v2(s));
  EQUAL(cuStreamDestroy_v2(s), CUDA_ERROR_INVALID_HANDLE);
  OK(cuMemFree_v2(a));
}

static void events_order_streams(const Gpu &gpu) {
  const Handle s = new_stream(), t = new_stream(), ready = new_event(), used = new_event();
  const CUdeviceptr a = device_floats(), b = device_floats();
  for (int i = 0; i < 10; i++) {
    OK(cuStreamWaitEvent(s, used, 0));
    OK(gpu.add(0, a, i, s));
    OK(cuEventRecord(ready, s));
    OK(cuStreamWaitEvent(t, ready, 0));
    OK(gpu.add(a, b, 100, t));
    OK(cuEventRecord(used, t));
    EQUAL(all_are(read_back(b, t), 100 + i), true);
  }
  // An event is what was recorded when the wait was made, not what is recorded later.
  OK(gpu.add(0, a, 5, s));
  OK(cuEventRecord(ready, s));
  OK(cuStreamWaitEvent(t, ready, 0));
  OK(cuEventRecord(used, t));
  OK(cuEventRecord(ready, s));
  EQUAL(all_are(read_back(a, t), 5), true);
}

static void legacy_stream_waits_for_blocking_ones(const Gpu &gpu) {
  const Handle s = new_stream(0), t = new_stream(0);
  const CUdeviceptr a = device_floats();
  for (int i = 0; i < 10; i++) {
    OK(gpu.add(0, a, i, s));
    OK(gpu.add(a, a, 1, nullptr));
    OK(gpu.add(a, a, 1, t));
    std::vector<float> v(N);
    OK(cuMemcpyDtoH_v2(v.data(), a, N * 4));
    EQUAL(all_are(v, i + 2), true);
  }
}

static void host_functions_run_in_order(const Gpu &gpu) {
  static std::atomic<int> calls{0}, inside_error{0};
  const Handle s = new_stream();
  const CUdeviceptr a = device_floats();
  for (int i = 0; i < 5; i++) {
    OK(gpu.add(0, a, 1, s));
    OK(cuLaunchHostFunc(s, [](void *expected) {
      if (calls == (int)(intptr_t)expected) calls++;
      inside_error = cuCtxSynchronize();
    }, (void *)(intptr_t)i));
  }
  OK(cuStreamSynchronize(s));
  EQUAL(calls, 5);
  EQUAL(inside_error, CUDA_ERROR_NOT_PERMITTED);
}

static void copies(const Gpu &gpu) {
  const Handle s = new_stream();
  const CUdeviceptr a = device_floats();
  // Pageable memory is the caller's again when the call returns.
  std::vector<float> host(N, 7);
  OK(cuMemcpyHtoDAsync_v2(a, host.data(), N * 4, s));
  host.assign(N, 8);
  EQUAL(all_are(read_back(a, s), 7), true);
  float *pinned = nullptr;
  OK(cuMemHostAlloc((void **)&pinned, N * 4, 0));
  EQUAL(std::isnan(pinned[0]), true);
  for (unsigned i = 0; i < N; i++) pinned[i] = 3;
  OK(cuMemcpyHtoDAsync_v2(a, pinned, N * 4, s));
  OK(gpu.add(a, a, 1, s));
  OK(cuMemcpyDtoHAsync_v2(pinned, a, N * 4, s));
  OK(cuStreamSynchronize(s));
  EQUAL(pinned[N - 1], 4);
  OK(cuMemFreeHost(pinned));
  OK(cuMemHostRegister_v2(host.data(), N * 4, 0));
  EQUAL(cuMemHostRegister_v2(host.data(), N * 4, 0), CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
  OK(cuMemcpyHtoDAsync_v2(a, host.data(), N * 4, s));
  OK(cuStreamSynchronize(s));
  OK(cuMemHostUnregister(host.data()));
  EQUAL(cuMemHostUnregister(host.data()), CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
}

static void events(const Gpu &gpu) {
  const Handle s = new_stream(), from = new_event(0), to = new_event(0), untimed = new_event();
  const CUdeviceptr a = device_floats();
  OK(cuEventQuery(from));  // never recorded
  float ms = -1;
  EQUAL(cuEventElapsedTime_v2(&ms, from, to), CUDA_ERROR_INVALID_HANDLE);
  OK(cuEventRecord(from, s));
  OK(gpu.add(0, a, 1, s));
  OK(cuEventRecord(to, s));
  OK(cuEventRecord(untimed, s));
  int result, asked = 0;
  while ((result = cuEventQuery(to)) == CUDA_ERROR_NOT_READY) asked++;
  OK(result);
  OK(cuEventElapsedTime_v2(&ms, from, to));
  EQUAL(ms >= 0, true);
  EQUAL(cuEventElapsedTime_v2(&ms, from, untimed), CUDA_ERROR_INVALID_HANDLE);
  OK(cuEventDestroy_v2(to));
  EQUAL(cuEventRecord(to, s), CUDA_ERROR_INVALID_HANDLE);
}

int main() {
  Gpu gpu;
  one_stream_is_a_queue(gpu);
  events_order_streams(gpu);
  legacy_stream_waits_for_blocking_ones(gpu);
  host_functions_run_in_order(gpu);
  copies(gpu);
  events(gpu);
}
