// The driver's public calls that the library needs, from the libcuda.so.1 that the program has loaded.
#pragma once
#include <cstddef>
#include <string>

namespace simnccl {
struct Cuda {
  int (*cuCtxGetDevice)(int *);
  int (*cuDeviceGetPCIBusId)(char *, int, int);
  int (*cuPointerGetAttribute)(void *, int, unsigned long long);
  int (*cuMemGetAddressRange_v2)(unsigned long long *, size_t *, unsigned long long);
  int (*cuStreamGetCaptureInfo_v3)(void *, int *, unsigned long long *, void **, void *const **, const void **, size_t *);
  int (*cuStreamWaitEvent)(void *, void *, unsigned);
  int (*cuLaunchHostFunc)(void *, void (*)(void *), void *);
  int (*cuEventCreate)(void **, unsigned);
  int (*cuEventRecord)(void *, void *);
  int (*cuGetErrorName)(int, const char **);
};
// Null: no driver is loaded.
const Cuda *cuda();
// "cuLaunchHostFunc: CUDA_ERROR_INVALID_HANDLE"
std::string cuda_text(const char *call, int code);
}  // namespace simnccl
