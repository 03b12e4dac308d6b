// Copies and fills. Page-locked host memory is read and written when the stream gets there; pageable memory is read at the call,
// and written before the call returns.
#include "driver.h"

namespace simgpu {
namespace {
enum class Side { host, device, any };
struct Copy {
  uintptr_t to, from;
  size_t bytes;
  Side to_side, from_side;
  bool synchronous;  // the call returns when the bytes have arrived
};

bool is_device(const Allocation *a) { return a && a->kind == Kind::device; }

Work copy_work(Device *device, const Copy &c, const char *name) {
  Work work;
  work.type = CU_GRAPH_NODE_TYPE_MEMCPY;
  work.device = device;
  const bool check_to = find_memory(c.to, c.bytes), check_from = find_memory(c.from, c.bytes);
  work.run = [c, name, check_to, check_from](uint64_t) -> Failure {
    {
      Lock lock(queue_mutex());
      if ((check_to && !find_memory(c.to, c.bytes)) || (check_from && !find_memory(c.from, c.bytes)))
        return {CUDA_ERROR_ILLEGAL_ADDRESS, std::string(name) + ": memory was freed before the copy ran"};
    }
    memmove((void *)c.to, (const void *)c.from, c.bytes);
    return {};
  };
  return work;
}

// Bytes of pageable memory as they are now.
Work staged_work(Device *device, const Copy &c) {
  Work work;
  work.type = CU_GRAPH_NODE_TYPE_MEMCPY;
  work.device = device;
  auto bytes = std::make_shared<std::vector<unsigned char>>((const unsigned char *)c.from, (const unsigned char *)c.from + c.bytes);
  work.run = [c, bytes](uint64_t) -> Failure {
    {
      Lock lock(queue_mutex());
      if (!find_memory(c.to, c.bytes)) return {CUDA_ERROR_ILLEGAL_ADDRESS, "copy to a device: memory was freed before the copy ran"};
    }
    memcpy((void *)c.to, bytes->data(), c.bytes);
    return {};
  };
  return work;
}

int copy(Lock &lock, Context &context, Stream *stream, const Copy &c, const char *name) {
  if (!stream) return CUDA_ERROR_INVALID_HANDLE;
  if (!c.bytes) return CUDA_SUCCESS;
  const Allocation *to = find_memory(c.to, c.bytes), *from = find_memory(c.from, c.bytes);
  if (!c.to || !c.from) return CUDA_ERROR_INVALID_VALUE;
  if ((c.to_side == Side::device && !is_device(to)) || (c.from_side == Side::device && !is_device(from))) return CUDA_ERROR_INVALID_VALUE;
  if ((c.to_side == Side::host && is_device(to)) || (c.from_side == Side::host && is_device(from))) return CUDA_ERROR_INVALID_VALUE;
  if (c.synchronous) {
    if (const int error = forbid_in_capture()) return error;
  }
  const bool pageable = !to || !from;
  if (stream->capture && pageable) return invalidate(*stream->capture), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  const bool stage = !from && !c.synchronous;
  if (const int error = submit(lock, *stream, stage ? staged_work(context.device, c) : copy_work(context.device, c, name))) return error;
  if (c.synchronous || (!to && !stream->capture)) wait_for(lock, stream->last);
  return CUDA_SUCCESS;
}

int copy_sync(const char *name, CUdeviceptr to, CUdeviceptr from, size_t bytes, Side to_side, Side from_side, bool synchronous) {
  return in_context(name, [&](Lock &lock, Context &context) {
    return copy(lock, context, &legacy_stream(context), {to, from, bytes, to_side, from_side, synchronous}, name);
  });
}
int copy_async(const char *name, CUdeviceptr to, CUdeviceptr from, size_t bytes, Side to_side, Side from_side, void *stream) {
  return in_context(name, [&](Lock &lock, Context &context) {
    return copy(lock, context, find_stream(context, stream), {to, from, bytes, to_side, from_side, false}, name);
  });
}

template <class T> int fill(const char *name, CUdeviceptr at, T value, size_t n, void *handle) {
  return in_context(name, [&](Lock &lock, Context &context) -> int {
    Stream *stream = find_stream(context, handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!n) return CUDA_SUCCESS;
    if (!is_device(find_memory(at, n * sizeof(T))) || at % sizeof(T)) return CUDA_ERROR_INVALID_VALUE;
    Work work;
    work.type = CU_GRAPH_NODE_TYPE_MEMSET;
    work.device = context.device;
    work.run = [=](uint64_t) -> Failure {
      {
        Lock lock(queue_mutex());
        if (!find_memory(at, n * sizeof(T))) return {CUDA_ERROR_ILLEGAL_ADDRESS, std::string(name) + ": memory was freed before the fill ran"};
      }
      for (size_t i = 0; i < n; i++) ((T *)at)[i] = value;
      return {};
    };
    return submit(lock, *stream, work);
  });
}
}  // namespace
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t n) {
  return copy_sync(__func__, to, (CUdeviceptr)from, n, Side::device, Side::host, true);
}
CUDA_API cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t n) {
  return copy_sync(__func__, (CUdeviceptr)to, from, n, Side::host, Side::device, true);
}
CUDA_API cuMemcpyDtoD_v2(CUdeviceptr to, CUdeviceptr from, size_t n) {  // the host does not wait
  return copy_sync(__func__, to, from, n, Side::device, Side::device, false);
}
CUDA_API cuMemcpy(CUdeviceptr to, CUdeviceptr from, size_t n) { return copy_sync(__func__, to, from, n, Side::any, Side::any, true); }
CUDA_API cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, void *stream) {
  return copy_async(__func__, to, (CUdeviceptr)from, n, Side::device, Side::host, stream);
}
CUDA_API cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, void *stream) {
  return copy_async(__func__, (CUdeviceptr)to, from, n, Side::host, Side::device, stream);
}
CUDA_API cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t n, void *stream) {
  return copy_async(__func__, to, from, n, Side::device, Side::device, stream);
}
CUDA_API cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t n, void *stream) {
  return copy_async(__func__, to, from, n, Side::any, Side::any, stream);
}
CUDA_API cuMemcpyPeerAsync(CUdeviceptr to, void *, CUdeviceptr from, void *, size_t n, void *stream) {
  return copy_async(__func__, to, from, n, Side::device, Side::device, stream);
}
CUDA_API cuMemcpyPeer(CUdeviceptr to, void *, CUdeviceptr from, void *, size_t n) {
  return copy_sync(__func__, to, from, n, Side::device, Side::device, true);
}
CUDA_API cuMemsetD8_v2(CUdeviceptr at, unsigned char value, size_t n) { return fill(__func__, at, value, n, nullptr); }
CUDA_API cuMemsetD16_v2(CUdeviceptr at, unsigned short value, size_t n) { return fill(__func__, at, value, n, nullptr); }
CUDA_API cuMemsetD32_v2(CUdeviceptr at, unsigned value, size_t n) { return fill(__func__, at, value, n, nullptr); }
CUDA_API cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t n, void *stream) { return fill(__func__, at, value, n, stream); }
CUDA_API cuMemsetD16Async(CUdeviceptr at, unsigned short value, size_t n, void *stream) { return fill(__func__, at, value, n, stream); }
CUDA_API cuMemsetD32Async(CUdeviceptr at, unsigned value, size_t n, void *stream) { return fill(__func__, at, value, n, stream); }
