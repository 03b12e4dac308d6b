// The part of NCCL's interface that the stand-in has: codes, kinds and structures as the interface of 2.28 fixes them.
#pragma once
#include <cstddef>
#include <cstdint>

#define NCCL_API extern "C" __attribute__((visibility("default")))

namespace simnccl {
constexpr int VERSION = 22809;

enum Result : int {
  ncclSuccess = 0,
  ncclUnhandledCudaError = 1,
  ncclSystemError = 2,
  ncclInternalError = 3,
  ncclInvalidArgument = 4,
  ncclInvalidUsage = 5,
  ncclRemoteError = 6,
  ncclInProgress = 7,
};

enum Type : int {
  ncclInt8 = 0,
  ncclUint8 = 1,
  ncclInt32 = 2,
  ncclUint32 = 3,
  ncclInt64 = 4,
  ncclUint64 = 5,
  ncclFloat16 = 6,
  ncclFloat32 = 7,
  ncclFloat64 = 8,
  ncclBfloat16 = 9,
};

constexpr int ncclSum = 0;

struct ncclUniqueId { char internal[128]; };

struct ncclConfig_t {
  size_t size;
  unsigned magic, version;
  int blocking, cga_cluster_size, min_ctas, max_ctas;
  const char *net_name;
  int split_share, traffic_class;
  const char *comm_name;
  int collnet_enable, cta_policy, shrink_share, nvls_ctas, channels_per_net_peer, nvlink_centric_sched;
};
static_assert(sizeof(ncclConfig_t) == 80);
constexpr unsigned CONFIG_MAGIC = 0xcafebeef;
constexpr int UNDEFINED = INT32_MIN;
}  // namespace simnccl
