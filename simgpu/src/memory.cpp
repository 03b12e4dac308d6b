// Memory: of devices (host memory with a limit, filled with 0xff when it comes and goes) and page-locked memory of the host.
#include "driver.h"
#include <cstdlib>
#if defined(SIMGPU_ASAN)
#include <sanitizer/asan_interface.h>
#endif

namespace simgpu {
const Allocation *find_memory(uintptr_t at, size_t bytes) {
  auto i = driver().memory.upper_bound(at);
  if (i == driver().memory.begin()) return nullptr;
  --i;
  return at - i->first <= i->second.bytes && bytes <= i->second.bytes - (at - i->first) ? &i->second : nullptr;
}

namespace {
// Exact size: what lies past the end belongs to nobody, which the sanitizer's redzones show.
void *make_memory(size_t bytes) {
  void *at = nullptr;
  if (posix_memalign(&at, 512, bytes)) return nullptr;
  memset(at, 0xff, bytes);
  return at;
}

int take_host(size_t bytes, unsigned flags, Device &device, void **out) {
  if (!out || !bytes) return CUDA_ERROR_INVALID_VALUE;
  *out = make_memory(bytes);
  if (!*out) return CUDA_ERROR_OUT_OF_MEMORY;
  driver().memory[(uintptr_t)*out] = {bytes, Kind::pinned, &device, flags};
  return CUDA_SUCCESS;
}

int give_host(Lock &lock, Context &context, void *at) {
  const Allocation *a = find_memory((uintptr_t)at, 0);
  if (!a || a->kind != Kind::pinned || !driver().memory.count((uintptr_t)at)) return CUDA_ERROR_INVALID_VALUE;
  wait_for_device(lock, *context.device);
  give_memory(at);
  return CUDA_SUCCESS;
}
}  // namespace

int take_memory(Lock &lock, Device &device, size_t bytes, void **out) {
  if (!out || !bytes) return CUDA_ERROR_INVALID_VALUE;
  const size_t limit = driver().memory_limit;
  if (device.used > limit || bytes > limit - device.used) wait_for_device(lock, device);  // frees may be on their way
  if (device.used > limit || bytes > limit - device.used) return CUDA_ERROR_OUT_OF_MEMORY;
  *out = make_memory(bytes);
  if (!*out) return CUDA_ERROR_OUT_OF_MEMORY;
  driver().memory[(uintptr_t)*out] = {bytes, Kind::device, &device, 0};
  device.used += bytes;
  device.high = device.used > device.high ? device.used : device.high;
  return CUDA_SUCCESS;
}

void give_memory(void *at) {
  const auto i = driver().memory.find((uintptr_t)at);
  if (i->second.kind == Kind::device) i->second.device->used -= i->second.bytes;
  memset(at, 0xff, i->second.bytes);
  free(at);
  driver().memory.erase(i);
}
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuMemAlloc_v2(CUdeviceptr *out, size_t bytes) {
  return in_context(__func__, [&](Lock &lock, Context &context) {
    if (const int error = forbid_in_capture()) return error;
    return take_memory(lock, *context.device, bytes, (void **)out);
  });
}
CUDA_API cuMemFree_v2(CUdeviceptr at) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    if (!at) return CUDA_SUCCESS;
    if (const int error = forbid_in_capture()) return error;
    wait_for_device(lock, *context.device);
    const Allocation *a = find_memory(at, 0);
    if (!a || a->kind != Kind::device || !driver().memory.count(at)) return CUDA_ERROR_INVALID_VALUE;
    give_memory((void *)at);
    return CUDA_SUCCESS;
  });
}
// The memory is there from now on; that its bytes are nobody's becomes true when the stream gets here.
CUDA_API cuMemAllocAsync(CUdeviceptr *out, size_t bytes, void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *stream = find_stream(context, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream->capture), CUDA_ERROR_NOT_SUPPORTED;
    if (const int error = take_memory(lock, *context.device, bytes, (void **)out)) return error;
    void *at = (void *)*out;
    Work poison;
    poison.device = context.device;
    poison.run = [at, bytes](uint64_t) { return memset(at, 0xff, bytes), Failure{}; };
    return submit(lock, *stream, poison);
  });
}
CUDA_API cuMemAllocFromPoolAsync(CUdeviceptr *out, size_t bytes, void *, void *stream) { return cuMemAllocAsync(out, bytes, stream); }
CUDA_API cuMemFreeAsync(CUdeviceptr at, void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *stream = find_stream(context, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream->capture), CUDA_ERROR_NOT_SUPPORTED;
    if (!at) return CUDA_SUCCESS;
    const Allocation *a = find_memory(at, 0);
    if (!a || a->kind != Kind::device || !driver().memory.count(at)) return CUDA_ERROR_INVALID_VALUE;
    Work release;
    release.device = context.device;
    release.run = [at](uint64_t) -> Failure {
      Lock lock(queue_mutex());
      if (!driver().memory.count(at)) return {CUDA_ERROR_ILLEGAL_ADDRESS, "cuMemFreeAsync: the memory was freed before"};
      give_memory((void *)at);
      return {};
    };
    return submit(lock, *stream, release);
  });
}
CUDA_API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  return in_context(__func__, [&](Lock &, Context &context) {
    *total = driver().memory_limit;
    *free_bytes = driver().memory_limit - context.device->used;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemGetAddressRange_v2(CUdeviceptr *base, size_t *bytes, CUdeviceptr at) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (!find_memory(at, 1)) return CUDA_ERROR_NOT_FOUND;
    const auto i = --driver().memory.upper_bound(at);
    if (base) *base = i->first;
    if (bytes) *bytes = i->second.bytes;
    return CUDA_SUCCESS;
  });
}

CUDA_API cuMemHostAlloc(void **out, size_t bytes, unsigned flags) {
  return in_context(__func__, [&](Lock &, Context &context) {
    if (const int error = forbid_in_capture()) return error;
    return take_host(bytes, flags, *context.device, out);
  });
}
CUDA_API cuMemAllocHost_v2(void **out, size_t bytes) { return cuMemHostAlloc(out, bytes, 0); }
CUDA_API cuMemFreeHost(void *at) {
  return in_context(__func__, [&](Lock &lock, Context &context) {
    if (const int error = forbid_in_capture()) return error;
    return give_host(lock, context, at);
  });
}
CUDA_API cuMemHostRegister_v2(void *at, size_t bytes, unsigned flags) {
  return in_context(__func__, [&](Lock &, Context &context) -> int {
    if (const int error = forbid_in_capture()) return error;
    if (!at || !bytes) return CUDA_ERROR_INVALID_VALUE;
    const auto next = driver().memory.lower_bound((uintptr_t)at);
    if (find_memory((uintptr_t)at, 1) || (next != driver().memory.end() && next->first < (uintptr_t)at + bytes))
      return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
    driver().memory[(uintptr_t)at] = {bytes, Kind::registered, context.device, flags};
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemHostUnregister(void *at) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    if (const int error = forbid_in_capture()) return error;
    const auto i = driver().memory.find((uintptr_t)at);
    if (i == driver().memory.end() || i->second.kind != Kind::registered) return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
    wait_for_device(lock, *context.device);
    driver().memory.erase((uintptr_t)at);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemHostGetDevicePointer_v2(CUdeviceptr *out, void *at, unsigned) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Allocation *a = find_memory((uintptr_t)at, 1);
    if (!a || a->kind == Kind::device) return CUDA_ERROR_INVALID_VALUE;
    *out = (CUdeviceptr)at;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemHostGetFlags(unsigned *flags, void *at) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Allocation *a = find_memory((uintptr_t)at, 1);
    if (!a || a->kind != Kind::pinned) return CUDA_ERROR_INVALID_VALUE;
    *flags = a->flags;
    return CUDA_SUCCESS;
  });
}
// Type (2) and ordinal (9) of what a pointer points to.
CUDA_API cuPointerGetAttribute(void *data, int which, CUdeviceptr at) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Allocation *a = find_memory(at, 1);
    if (!a) return CUDA_ERROR_INVALID_VALUE;
    if (which == 2) *(unsigned *)data = a->kind == Kind::device ? 2 : 1;
    else if (which == 9) *(int *)data = a->device->ordinal;
    else return CUDA_ERROR_NOT_SUPPORTED;
    return CUDA_SUCCESS;
  });
}

// ---- pools: each device has one, its default
CUDA_API cuDeviceGetDefaultMemPool(void **pool, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (device < 0 || (size_t)device >= driver().devices.size()) return CUDA_ERROR_INVALID_DEVICE;
    *pool = &driver().devices[device];
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceGetMemPool(void **pool, CUdevice device) { return cuDeviceGetDefaultMemPool(pool, device); }
CUDA_API cuMemPoolGetAttribute(void *pool, int which, void *value) {
  return call(__func__, [&](Lock &) {
    const Device *device = (const Device *)pool;
    if (which >= 1 && which <= 3) *(int *)value = 1;  // reuse rules
    else if (which == 4) *(uint64_t *)value = device->release_threshold;
    else if (which == 5 || which == 7) *(uint64_t *)value = device->used;
    else if (which == 6 || which == 8) *(uint64_t *)value = device->high;
    else return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemPoolSetAttribute(void *pool, int which, void *value) {
  return call(__func__, [&](Lock &) {
    Device *device = (Device *)pool;
    if (which == 4) device->release_threshold = *(uint64_t *)value;
    else if (which == 6 || which == 8) device->high = device->used;
    else if (which < 1 || which > 3) return CUDA_ERROR_INVALID_VALUE;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuMemPoolTrimTo(void *, size_t) { return call(__func__, [](Lock &) { return CUDA_SUCCESS; }); }

// ---- not on this device; a binding asks for them by name
CUDA_API cuMemAllocManaged(CUdeviceptr *, size_t, unsigned) { return call(__func__, [](Lock &) { return CUDA_ERROR_NOT_SUPPORTED; }); }
CUDA_API cuMemPoolCreate(void **, const void *) { return call(__func__, [](Lock &) { return CUDA_ERROR_NOT_SUPPORTED; }); }
CUDA_API cuMemPoolDestroy(void *) { return call(__func__, [](Lock &) { return CUDA_ERROR_NOT_SUPPORTED; }); }
CUDA_API cuDeviceSetMemPool(CUdevice, void *) { return call(__func__, [](Lock &) { return CUDA_ERROR_NOT_SUPPORTED; }); }

// For tests that hold device memory of their own: marks bytes that no kernel may touch, where the flavour can see it. They are unmarked
// when the memory is freed.
extern "C" __attribute__((visibility("default"))) void simgpu_poison([[maybe_unused]] const void *at, [[maybe_unused]] size_t bytes) {
#if defined(SIMGPU_ASAN)
  __asan_poison_memory_region(at, bytes);
#endif
}
