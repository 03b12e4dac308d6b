#include "cuda.h"
#include <dlfcn.h>
#include <type_traits>

namespace simnccl {
const Cuda *cuda() {
  static const Cuda *const found = []() -> const Cuda * {
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!library) return nullptr;
    static Cuda c;
    bool all = true;
    auto load = [&](auto &function, const char *name) {
      function = (std::remove_reference_t<decltype(function)>)dlsym(library, name);
      all = all && function;
    };
    load(c.cuCtxGetDevice, "cuCtxGetDevice");
    load(c.cuDeviceGetPCIBusId, "cuDeviceGetPCIBusId");
    load(c.cuPointerGetAttribute, "cuPointerGetAttribute");
    load(c.cuMemGetAddressRange_v2, "cuMemGetAddressRange_v2");
    load(c.cuStreamGetCaptureInfo_v3, "cuStreamGetCaptureInfo_v3");
    load(c.cuStreamWaitEvent, "cuStreamWaitEvent");
    load(c.cuLaunchHostFunc, "cuLaunchHostFunc");
    load(c.cuEventCreate, "cuEventCreate");
    load(c.cuEventRecord, "cuEventRecord");
    load(c.cuGetErrorName, "cuGetErrorName");
    return all ? &c : nullptr;
  }();
  return found;
}

std::string cuda_text(const char *call, int code) {
  const char *name = nullptr;
  cuda()->cuGetErrorName(code, &name);
  return std::string(call) + ": " + (name ? name : "CUDA error " + std::to_string(code));
}
}  // namespace simnccl
