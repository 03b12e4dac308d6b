// What the tests of the stand-in share: the interface as a program sees it, checks, and a context with kernels.
#pragma once
#include "cuda_api.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

extern "C" {
typedef void *Handle;
int cuInit(unsigned);
int cuDeviceGetCount(int *);
int cuDeviceGetAttribute(int *, int, int);
int cuDeviceTotalMem_v2(size_t *, int);
int cuDevicePrimaryCtxRetain(Handle *, int);
int cuDevicePrimaryCtxRelease_v2(int);
int cuCtxSetCurrent(Handle);
int cuCtxSynchronize();
int cuGetErrorName(int, const char **);
int cuGetErrorString(int, const char **);
int cuGetProcAddress_v2(const char *, void **, int, uint64_t, int *);
int cuMemAlloc_v2(CUdeviceptr *, size_t);
int cuMemFree_v2(CUdeviceptr);
int cuMemAllocAsync(CUdeviceptr *, size_t, Handle);
int cuMemFreeAsync(CUdeviceptr, Handle);
int cuMemGetInfo_v2(size_t *, size_t *);
int cuMemHostAlloc(void **, size_t, unsigned);
int cuMemFreeHost(void *);
int cuMemHostRegister_v2(void *, size_t, unsigned);
int cuMemHostUnregister(void *);
int cuMemcpyHtoD_v2(CUdeviceptr, const void *, size_t);
int cuMemcpyDtoH_v2(void *, CUdeviceptr, size_t);
int cuMemcpyHtoDAsync_v2(CUdeviceptr, const void *, size_t, Handle);
int cuMemcpyDtoHAsync_v2(void *, CUdeviceptr, size_t, Handle);
int cuMemcpyDtoDAsync_v2(CUdeviceptr, CUdeviceptr, size_t, Handle);
int cuMemsetD8Async(CUdeviceptr, unsigned char, size_t, Handle);
int cuMemsetD32Async(CUdeviceptr, unsigned, size_t, Handle);
int cuMemsetD32_v2(CUdeviceptr, unsigned, size_t);
int cuStreamCreate(Handle *, unsigned);
int cuStreamDestroy_v2(Handle);
int cuStreamSynchronize(Handle);
int cuStreamQuery(Handle);
int cuStreamWaitEvent(Handle, Handle, unsigned);
int cuStreamBeginCapture_v2(Handle, int);
int cuStreamEndCapture(Handle, Handle *);
int cuStreamIsCapturing(Handle, int *);
int cuStreamGetCaptureInfo_v3(Handle, int *, uint64_t *, Handle *, Handle *const **, const void **, size_t *);
int cuThreadExchangeStreamCaptureMode(int *);
int cuEventCreate(Handle *, unsigned);
int cuEventDestroy_v2(Handle);
int cuEventRecord(Handle, Handle);
int cuEventRecordWithFlags(Handle, Handle, unsigned);
int cuEventQuery(Handle);
int cuEventSynchronize(Handle);
int cuEventElapsedTime_v2(float *, Handle, Handle);
int cuLaunchHostFunc(Handle, void (*)(void *), void *);
int cuModuleLoadData(Handle *, const void *);
int cuModuleUnload(Handle);
int cuModuleGetFunction(Handle *, Handle, const char *);
int cuFuncSetAttribute(Handle, int, int);
int cuFuncGetParamInfo(Handle, size_t, size_t *, size_t *);
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *, Handle, int, size_t);
int cuLaunchKernel(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **);
int cuLaunchKernelEx(const CUlaunchConfig *, Handle, void **, void **);
int cuGraphInstantiateWithFlags(Handle *, Handle, unsigned long long);
int cuGraphLaunch(Handle, Handle);
int cuGraphExecDestroy(Handle);
int cuGraphDestroy(Handle);
int cuGraphGetNodes(Handle, Handle *, size_t *);
int cuGraphNodeGetDependencies_v2(Handle, Handle *, void *, size_t *);
int cuGraphNodeGetType(Handle, int *);
int cuGraphKernelNodeGetParams_v2(Handle, CUkernelNodeParams *);
int cuGraphExecKernelNodeSetParams_v2(Handle, Handle, const CUkernelNodeParams *);
int cuGraphExecUpdate_v2(Handle, Handle, CUgraphExecUpdateResultInfo *);
}

inline void check_equal(long long got, long long expected, const char *text, const char *file, int line) {
  if (got == expected) return;
  fprintf(stderr, "%s:%d: %s is %lld, expected %lld\n", file, line, text, got, expected);
  _Exit(1);
}
#define EQUAL(got, expected) check_equal((long long)(got), (long long)(expected), #got, __FILE__, __LINE__)
#define OK(call) EQUAL(call, CUDA_SUCCESS)

// The argument struct of the kernels in kernels.cu.
struct TestArgs {
  const float *from;
  float *to;
  unsigned n;
  float value;
};

constexpr unsigned N = 300;

struct Gpu {
  Handle context = nullptr, module = nullptr;
  Gpu() {
    OK(cuInit(0));
    OK(cuDevicePrimaryCtxRetain(&context, 0));
    OK(cuCtxSetCurrent(context));
    OK(cuModuleLoadData(&module, "any image"));
  }
  Handle function(const char *name) const {
    Handle f = nullptr;
    OK(cuModuleGetFunction(&f, module, name));
    return f;
  }
  // to[i] = from[i] + value, or value alone where `from` is 0.
  int add(CUdeviceptr from, CUdeviceptr to, float value, Handle stream, unsigned n = N) const {
    TestArgs args{(const float *)from, (float *)to, n, value};
    void *params[] = {&args};
    return cuLaunchKernel(function("test_add"), (n + 63) / 64, 1, 1, 64, 1, 1, 0, stream, params, nullptr);
  }
};

inline CUdeviceptr device_floats(unsigned n = N) {
  CUdeviceptr p = 0;
  OK(cuMemAlloc_v2(&p, n * sizeof(float)));
  return p;
}
inline Handle new_stream(unsigned flags = CU_STREAM_NON_BLOCKING) {
  Handle s = nullptr;
  OK(cuStreamCreate(&s, flags));
  return s;
}
inline Handle new_event(unsigned flags = CU_EVENT_DISABLE_TIMING) {
  Handle e = nullptr;
  OK(cuEventCreate(&e, flags));
  return e;
}
// The stream's view of device memory, n floats.
inline std::vector<float> read_back(CUdeviceptr p, Handle stream, unsigned n = N) {
  std::vector<float> v(n);
  OK(cuMemcpyDtoHAsync_v2(v.data(), p, n * sizeof(float), stream));
  OK(cuStreamSynchronize(stream));
  return v;
}
inline bool all_are(const std::vector<float> &v, float expected) {
  for (float x : v)
    if (x != expected) return false;
  return true;
}
