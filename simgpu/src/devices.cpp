// Devices and contexts. How many devices, multiprocessors and bytes there are is told by variables.
#include "driver.h"
#include <cstdio>
#include <cstdlib>

using namespace simgpu;

namespace {
long long number(const char *name, long long otherwise) {
  const char *value = getenv(name);
  if (!value || !*value) return otherwise;
  char *end;
  const long long n = strtoll(value, &end, 0);
  if (*end || n < 0) {
    fprintf(stderr, "simgpu: %s=%s is not a number of at least 0\n", name, value);
    exit(2);
  }
  return n;
}

Device *device_of(CUdevice ordinal) {
  Driver &d = driver();
  return ordinal >= 0 && (size_t)ordinal < d.devices.size() ? &d.devices[ordinal] : nullptr;
}

Context *primary_of(Device &device) {
  for (const auto &c : driver().contexts.live)
    if (c.second->primary && c.second->device == &device) return c.second.get();
  return nullptr;
}

void destroy_context(Lock &lock, Context &context) {
  wait_for_device(lock, *context.device);
  Driver &d = driver();
  auto ours = [&](auto &handles) {
    for (auto i = handles.live.begin(); i != handles.live.end();) i = i->second->context == &context ? handles.live.erase(i) : std::next(i);
  };
  ours(d.streams);
  ours(d.events);
  d.legacy.erase(&context);
  for (auto i = d.per_thread.begin(); i != d.per_thread.end();) i = i->first.first == &context ? d.per_thread.erase(i) : std::next(i);
  if (current_context() == &context) set_current_context(nullptr);
  d.contexts.remove(&context);
}

// Attributes that are not in the list are 0: not supported.
int attribute(const Device &device, int which) {
  switch (which) {
    case 1: return MAX_THREADS;                    // threads per block
    case 2: case 3: return 1024;                   // block x, y
    case 4: return 64;                             // block z
    case 5: return 0x7fffffff;                     // grid x
    case 6: case 7: return 65535;                  // grid y, z
    case 8: return SHARED_BYTES_DEFAULT;           // shared memory per block
    case 9: return 65536;                          // constant memory
    case 10: return 32;                            // warp
    case 12: case 82: return 65536;                // registers per block, per multiprocessor
    case 13: return 1000000;                       // clock, kHz
    case 15: case 31: case 41: case 18 + 1: return 1;  // overlap, concurrent kernels, unified addressing, host memory mappable
    case 16: return driver().sms;
    case 33: return device.ordinal + 1;            // PCI bus
    case 36: return 1000000;                       // memory clock, kHz
    case 37: return 512;                           // memory bus, bits
    case 38: return 4 << 20;                       // L2 bytes
    case 39: return THREADS_PER_SM;
    case 40: return 2;                             // copy engines
    case 75: return 9;                             // compute capability
    case 78: return 1;                             // stream priorities
    case 81: return SHARED_BYTES_PER_SM;
    case 97: return SHARED_BYTES_MAX;              // with the function's attribute
    case 99: return 1;                             // host memory registrable
    case 106: return BLOCKS_PER_SM;
    case 111: return 1024;                         // shared memory reserved per block
    case 115: return 1;                            // memory pools
    case 120: case 127: return 1;                  // clusters, tensor maps
    default: return 0;
  }
}
}  // namespace

CUDA_API cuInit(unsigned flags) {
  int result = flags ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
  Lock lock(queue_mutex());
  Driver &d = driver();
  if (!result && !d.initialised) {
    schedule();
    d.devices.resize(number("SIMGPU_DEVICES", 1));
    for (size_t i = 0; i < d.devices.size(); i++) d.devices[i].ordinal = i;
    d.memory_limit = number("SIMGPU_MEMORY", 4ll << 30);
    d.sms = number("SIMGPU_SMS", 2);
    d.initialised = !d.devices.empty();
  }
  if (!result && !d.initialised) result = CUDA_ERROR_NO_DEVICE;
  log_call(__func__, result);
  return result;
}
CUDA_API cuDriverGetVersion(int *version) {
  *version = 13000;
  return CUDA_SUCCESS;
}
CUDA_API cuDeviceGetCount(int *count) {
  return call(__func__, [&](Lock &) { return *count = driver().devices.size(), CUDA_SUCCESS; });
}
CUDA_API cuDeviceGet(CUdevice *device, int ordinal) {
  return call(__func__, [&](Lock &) {
    if (!device_of(ordinal)) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceGetName(char *name, int bytes, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (!name || bytes < 1) return CUDA_ERROR_INVALID_VALUE;
    snprintf(name, bytes, "stand-in GPU");
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device)) return CUDA_ERROR_INVALID_DEVICE;
    *uuid = CUuuid{{'s', 'i', 'm', 'g', 'p', 'u', 0, 0, 0, 0, 0, 0, 0, 0, 0, (unsigned char)device}};
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceGetUuid(CUuuid *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }
CUDA_API cuDeviceGetPCIBusId(char *id, int bytes, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device)) return CUDA_ERROR_INVALID_DEVICE;
    snprintf(id, bytes, "0000:%02x:00.0", device + 1);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device)) return CUDA_ERROR_INVALID_DEVICE;
    *bytes = driver().memory_limit;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceGetAttribute(int *value, int which, CUdevice device) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device)) return CUDA_ERROR_INVALID_DEVICE;
    if (which < 1 || which > 147) return CUDA_ERROR_INVALID_VALUE;
    *value = attribute(*device_of(device), which);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDeviceCanAccessPeer(int *can, CUdevice device, CUdevice peer) {
  return call(__func__, [&](Lock &) {
    if (!device_of(device) || !device_of(peer)) return CUDA_ERROR_INVALID_DEVICE;
    *can = device != peer;
    return CUDA_SUCCESS;
  });
}

CUDA_API cuDevicePrimaryCtxRetain(void **out, CUdevice ordinal) {
  return call(__func__, [&](Lock &) {
    Device *device = device_of(ordinal);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    Context *context = primary_of(*device);
    if (!context) context = driver().contexts.add(std::make_shared<Context>(Context{device, true}));
    device->primary_users++;
    *out = context;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDevicePrimaryCtxRelease_v2(CUdevice ordinal) {
  return call(__func__, [&](Lock &lock) {
    Device *device = device_of(ordinal);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    if (!device->primary_users) return CUDA_ERROR_INVALID_CONTEXT;
    if (--device->primary_users == 0) destroy_context(lock, *primary_of(*device));
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDevicePrimaryCtxSetFlags_v2(CUdevice ordinal, unsigned flags) {
  return call(__func__, [&](Lock &) {
    Device *device = device_of(ordinal);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    device->primary_flags = flags;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuDevicePrimaryCtxGetState(CUdevice ordinal, unsigned *flags, int *active) {
  return call(__func__, [&](Lock &) {
    Device *device = device_of(ordinal);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    *flags = device->primary_flags, *active = device->primary_users > 0;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxCreate_v4(void **out, void *, unsigned, CUdevice ordinal) {
  return call(__func__, [&](Lock &) {
    Device *device = device_of(ordinal);
    if (!device) return CUDA_ERROR_INVALID_DEVICE;
    *out = driver().contexts.add(std::make_shared<Context>(Context{device, false}));
    set_current_context((Context *)*out);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxDestroy_v2(void *handle) {
  return call(__func__, [&](Lock &lock) {
    Context *context = driver().contexts.find(handle);
    if (!context || context->primary) return CUDA_ERROR_INVALID_CONTEXT;
    destroy_context(lock, *context);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxSetCurrent(void *context) {
  return call(__func__, [&](Lock &) {
    if (context && !driver().contexts.find(context)) return CUDA_ERROR_INVALID_CONTEXT;
    set_current_context((Context *)context);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxGetCurrent(void **context) {
  return call(__func__, [&](Lock &) {
    *context = driver().contexts.find(current_context());
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxGetDevice(CUdevice *device) {
  return in_context(__func__, [&](Lock &, Context &context) { return *device = context.device->ordinal, CUDA_SUCCESS; });
}
CUDA_API cuCtxSynchronize() {
  return in_context(__func__, [&](Lock &lock, Context &context) {
    if (const int error = forbid_in_capture()) return error;
    wait_for_device(lock, *context.device);
    return (int)CUDA_SUCCESS;
  });
}
CUDA_API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  return in_context(__func__, [&](Lock &, Context &) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuCtxSetFlags(unsigned) { return in_context(__func__, [](Lock &, Context &) { return CUDA_SUCCESS; }); }
CUDA_API cuCtxGetLimit(size_t *, int) { return in_context(__func__, [](Lock &, Context &) { return CUDA_ERROR_UNSUPPORTED_LIMIT; }); }
CUDA_API cuCtxSetLimit(int, size_t) { return in_context(__func__, [](Lock &, Context &) { return CUDA_ERROR_UNSUPPORTED_LIMIT; }); }
CUDA_API cuCtxGetCacheConfig(int *config) { return in_context(__func__, [&](Lock &, Context &) { return *config = 0, CUDA_SUCCESS; }); }
CUDA_API cuCtxSetCacheConfig(int) { return in_context(__func__, [](Lock &, Context &) { return CUDA_SUCCESS; }); }
CUDA_API cuCtxEnablePeerAccess(void *, unsigned) { return in_context(__func__, [](Lock &, Context &) { return CUDA_SUCCESS; }); }
CUDA_API cuProfilerStart() { return in_context(__func__, [](Lock &, Context &) { return CUDA_SUCCESS; }); }
CUDA_API cuProfilerStop() { return in_context(__func__, [](Lock &, Context &) { return CUDA_SUCCESS; }); }
