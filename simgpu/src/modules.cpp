// Modules and functions. What a module holds is not read: every kernel that was built in can be had from every module.
#include "driver.h"
#include <unistd.h>

namespace simgpu {
namespace {
int load(void **out, const void *image) {
  if (const int error = forbid_in_capture()) return error;
  if (!out || !image) return CUDA_ERROR_INVALID_VALUE;
  *out = driver().modules.add(std::make_shared<Module>());
  return CUDA_SUCCESS;
}

// Blocks of a multiprocessor that fit at once.
int occupancy(unsigned threads, size_t shared) {
  if (!threads || threads > MAX_THREADS || shared > SHARED_BYTES_MAX) return 0;
  const size_t by_threads = THREADS_PER_SM / ((threads + 31) / 32 * 32), by_shared = SHARED_BYTES_PER_SM / (shared + 1024);
  const size_t fit = by_threads < by_shared ? by_threads : by_shared;
  return fit < BLOCKS_PER_SM ? fit : BLOCKS_PER_SM;
}
}  // namespace
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuModuleLoadData(void **out, const void *image) {
  return in_context(__func__, [&](Lock &, Context &) { return load(out, image); });
}
CUDA_API cuModuleLoadDataEx(void **out, const void *image, unsigned, int *, void **) { return cuModuleLoadData(out, image); }
CUDA_API cuModuleLoadFatBinary(void **out, const void *image) { return cuModuleLoadData(out, image); }
CUDA_API cuModuleLoad(void **out, const char *path) {
  return in_context(__func__, [&](Lock &, Context &) { return path && !access(path, R_OK) ? load(out, path) : CUDA_ERROR_FILE_NOT_FOUND; });
}
CUDA_API cuModuleUnload(void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    if (const int error = forbid_in_capture()) return error;
    wait_for_device(lock, *context.device);
    const Module *module = driver().modules.find(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    for (const auto &f : module->functions) driver().functions.remove(f.second);
    driver().modules.remove(handle);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuModuleGetLoadingMode(int *mode) {
  return call(__func__, [&](Lock &) { return *mode = 2, CUDA_SUCCESS; });  // lazy
}
CUDA_API cuModuleGetFunction(void **out, void *handle, const char *name) {
  return in_context(__func__, [&](Lock &, Context &) {
    Module *module = driver().modules.find(handle);
    if (!module) return CUDA_ERROR_INVALID_HANDLE;
    if (!out || !name) return CUDA_ERROR_INVALID_VALUE;
    const Kernel *kernel = find_kernel(name);
    if (!kernel) return CUDA_ERROR_NOT_FOUND;
    void *&f = module->functions[name];
    if (!f) f = driver().functions.add(std::make_shared<Function>(Function{kernel, module}));
    *out = f;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuModuleGetGlobal_v2(CUdeviceptr *, size_t *, void *handle, const char *) {
  return in_context(__func__, [&](Lock &, Context &) { return driver().modules.find(handle) ? CUDA_ERROR_NOT_FOUND : CUDA_ERROR_INVALID_HANDLE; });
}
CUDA_API cuFuncGetModule(void **out, void *handle) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    *out = f->module;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuFuncGetName(const char **name, void *handle) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    *name = f->kernel->name;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuFuncLoad(void *handle) {
  return in_context(__func__, [&](Lock &, Context &) { return driver().functions.find(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}
CUDA_API cuFuncIsLoaded(int *state, void *handle) {
  return in_context(__func__, [&](Lock &, Context &) {
    *state = 1;
    return driver().functions.find(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  });
}
// A kernel has one parameter, its argument struct.
CUDA_API cuFuncGetParamInfo(void *handle, size_t index, size_t *offset, size_t *bytes) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    if (index) return CUDA_ERROR_INVALID_VALUE;
    if (offset) *offset = 0;
    if (bytes) *bytes = f->kernel->args_bytes;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuFuncGetAttribute(int *value, int which, void *handle) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    if (which < 0 || which >= CU_FUNC_ATTRIBUTE_MAX) return CUDA_ERROR_INVALID_VALUE;
    switch (which) {
      case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *value = MAX_THREADS; break;
      case CU_FUNC_ATTRIBUTE_NUM_REGS: *value = 32; break;
      case CU_FUNC_ATTRIBUTE_PTX_VERSION: case CU_FUNC_ATTRIBUTE_BINARY_VERSION: *value = 90; break;
      case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES: *value = f->max_dynamic; break;
      case CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED: *value = f->non_portable_cluster; break;
      default: *value = 0;
    }
    return CUDA_SUCCESS;
  });
}
CUDA_API cuFuncSetAttribute(void *handle, int which, int value) {
  return in_context(__func__, [&](Lock &, Context &) {
    Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    if (which == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
      if (value < 0 || (size_t)value > SHARED_BYTES_MAX) return CUDA_ERROR_INVALID_VALUE;
      f->max_dynamic = value;
    } else if (which == CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED) {
      f->non_portable_cluster = value;
    } else if (which != CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) {
      return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
  });
}
CUDA_API cuFuncSetCacheConfig(void *handle, int) { return cuFuncLoad(handle); }

CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, void *handle, int threads, size_t shared, unsigned) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (!driver().functions.find(handle)) return CUDA_ERROR_INVALID_HANDLE;
    if (threads < 1) return CUDA_ERROR_INVALID_VALUE;
    *blocks = occupancy(threads, shared);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
CUDA_API cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, void *handle, int blocks, int threads) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (!driver().functions.find(handle)) return CUDA_ERROR_INVALID_HANDLE;
    if (blocks < 1 || threads < 1 || occupancy(threads, 0) < blocks) return CUDA_ERROR_INVALID_VALUE;
    const size_t share = SHARED_BYTES_PER_SM / blocks - 1024;
    *bytes = share < SHARED_BYTES_MAX ? share : SHARED_BYTES_MAX;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, void *handle, size_t (*shared_of)(int), size_t shared, int limit, unsigned) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (!driver().functions.find(handle)) return CUDA_ERROR_INVALID_HANDLE;
    int best = 0;
    for (int threads = MAX_THREADS; threads >= 32; threads -= 32) {
      if (limit && threads > limit) continue;
      const int fit = occupancy(threads, shared_of ? shared_of(threads) : shared);
      if (fit * threads > best) best = fit * threads, *block = threads, *grid = fit * driver().sms;
    }
    return best ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  });
}
CUDA_API cuOccupancyMaxPotentialBlockSize(int *grid, int *block, void *function, size_t (*shared_of)(int), size_t shared, int limit) {
  return cuOccupancyMaxPotentialBlockSizeWithFlags(grid, block, function, shared_of, shared, limit, 0);
}
CUDA_API cuOccupancyMaxPotentialClusterSize(int *size, void *handle, const CUlaunchConfig *) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Function *f = driver().functions.find(handle);
    if (!f) return CUDA_ERROR_INVALID_HANDLE;
    *size = f->non_portable_cluster ? CLUSTER_MAX_NON_PORTABLE : CLUSTER_MAX;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuOccupancyMaxActiveClusters(int *clusters, void *handle, const CUlaunchConfig *config) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (!driver().functions.find(handle) || !config) return CUDA_ERROR_INVALID_HANDLE;
    unsigned size = 1;
    for (unsigned i = 0; i < config->attribute_count; i++) {
      const CUlaunchAttribute &a = config->attributes[i];
      if (a.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) size = a.value.cluster.x * a.value.cluster.y * a.value.cluster.z;
    }
    const int fit = occupancy(config->block_x * config->block_y * config->block_z, config->shared_bytes);
    *clusters = size ? fit * driver().sms / (int)size : 0;
    return CUDA_SUCCESS;
  });
}
