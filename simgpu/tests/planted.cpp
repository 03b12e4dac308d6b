// Runs one kernel of planted/ and compares with what it should compute: planted KERNEL. Exit 0: right; 1: found wrong.
// planted streams_bug | streams_good | host_bug | host_good: mistakes of the program around kernels.
#include "check.h"
#include <string>

static int compare(const std::vector<float> &got, const std::vector<float> &expected) {
  for (size_t i = 0; i < expected.size(); i++) {
    if (got[i] == expected[i]) continue;
    fprintf(stderr, "element %zu is %g, expected %g\n", i, got[i], expected[i]);
    return 1;
  }
  return 0;
}

static int kernel(const Gpu &gpu, const char *name) {
  const unsigned n = 256, threads = 128;
  std::vector<float> in(n), expected(n), got(n);
  for (unsigned i = 0; i < n; i++) in[i] = i + 1;
  for (unsigned i = 0; i < n; i++) expected[i] = in[i / threads * threads + threads - 1 - i % threads];
  const CUdeviceptr from = device_floats(n), to = device_floats(n);
  OK(cuMemcpyHtoD_v2(from, in.data(), n * 4));
  struct { CUdeviceptr from, to; } args{from, to};
  void *params[] = {&args};
  if (cuLaunchKernel(gpu.function(name), n / threads, 1, 1, threads, 1, 1, 512, nullptr, params, nullptr)) return 1;
  if (cuMemcpyDtoH_v2(got.data(), to, n * 4)) return 1;
  return compare(got, expected);
}

// A consumer in a second stream, with or without the event that makes it wait.
static int streams(const Gpu &gpu, bool bug) {
  const Handle s = new_stream(), t = new_stream(), ready = new_event();
  const CUdeviceptr a = device_floats(), b = device_floats();
  OK(gpu.add(0, a, 5, s));
  OK(cuEventRecord(ready, s));
  if (!bug) OK(cuStreamWaitEvent(t, ready, 0));
  OK(gpu.add(a, b, 1, t));
  return compare(read_back(b, t), std::vector<float>(N, 6));
}

// A page-locked buffer filled anew, with or without a wait for the copy of what it held.
static int host(const Gpu &, bool bug) {
  const Handle s = new_stream();
  const CUdeviceptr a = device_floats();
  float *pinned = nullptr;
  OK(cuMemHostAlloc((void **)&pinned, N * 4, 0));
  for (unsigned i = 0; i < N; i++) pinned[i] = 1;
  OK(cuMemcpyHtoDAsync_v2(a, pinned, N * 4, s));
  if (!bug) OK(cuStreamSynchronize(s));
  for (unsigned i = 0; i < N; i++) pinned[i] = 2;
  return compare(read_back(a, s), std::vector<float>(N, 1));
}

int main(int argc, char **argv) {
  if (argc != 2) return fprintf(stderr, "usage: planted KERNEL\n"), 2;
  const std::string name = argv[1];
  Gpu gpu;
  if (name == "streams_bug" || name == "streams_good") return streams(gpu, name == "streams_bug");
  if (name == "host_bug" || name == "host_good") return host(gpu, name == "host_bug");
  return kernel(gpu, argv[1]);
}
