// Life of a communicator: id, join, finalize, destroy, abort, and questions about it.
#include "comm.h"
#include "faults.h"
#include <unistd.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

namespace simnccl {
namespace {
std::mutex &registry_mutex() {
  static std::mutex *m = new std::mutex;
  return *m;
}
std::map<void *, CommRef> &registry() {
  static auto *r = new std::map<void *, CommRef>;
  return *r;
}
std::string &last_error() {
  static std::string *text = new std::string;
  return *text;
}
void forget(void *handle) {
  std::lock_guard<std::mutex> lock(registry_mutex());
  registry().erase(handle);
}

uint64_t host_hash() {
  char name[256] = "";
  const char *id = getenv("NCCL_HOSTID");
  if (!id) gethostname(name, sizeof name - 1);
  return std::hash<std::string>()(id ? id : name);
}

// As NCCL: a GPU belongs to one rank, unless the ranks claim to be on different hosts.
std::string duplicate(Comm &comm) {
  for (int r = 0; r < comm.world; r++) {
    if (r == comm.rank || comm.member(r).host != comm.self().host || strcmp(comm.member(r).bus, comm.self().bus)) continue;
    return "Duplicate GPU detected : rank " + std::to_string(comm.rank) + " and rank " + std::to_string(r) + " both on CUDA device " +
           comm.bus;
  }
  return {};
}

void join(Comm &comm, const ncclUniqueId &id) {
  const std::string text = open_shared(id, comm.world, &comm.shared);
  if (!text.empty()) {
    comm.shared = nullptr;
    return comm.fail(ncclSystemError, text);
  }
  Shared &shared = *comm.shared;
  int world = 0, pid = 0;
  if (!shared.world.compare_exchange_strong(world, comm.world) && world != comm.world)
    return comm.fail(ncclInvalidArgument, "a world of " + std::to_string(comm.world) + " ranks here, of " + std::to_string(world) + " elsewhere");
  if (!comm.self().pid.compare_exchange_strong(pid, JOINING))
    return comm.fail(ncclInvalidUsage, "rank " + std::to_string(comm.rank) + " has joined before");
  comm.self().born = born(getpid());
  comm.self().host = host_hash();
  memcpy(comm.self().bus, comm.bus, sizeof comm.bus);
  comm.self().pid = getpid();
  shared.joined++;
  shared.wake();
  if (!comm.wait([&] { return shared.joined == comm.world; })) return;
  close_id(shared.nonce);
  const std::string same = duplicate(comm);
  if (!same.empty()) comm.fail(ncclInvalidUsage, same);
}

// All work that was submitted has been done, on all ranks.
void finalize(Comm &comm) {
  if (!comm.wait([&] { return comm.queued == 0; })) return;
  comm.self().finalized = 1;
  comm.shared->wake();
  comm.wait([&] {
    for (int r = 0; r < comm.world; r++)
      if (!comm.member(r).finalized) return false;
    return true;
  });
  comm.finalized = true;
}

void in_background(const CommRef &comm, std::function<void()> work) {
  comm->busy = true;
  std::thread([comm, work] {
    work();
    comm->busy = false;
  }).detach();
}

void wait_until_idle(const Comm &comm) {
  while (comm.busy) usleep(1000);
}

// Until every other rank has, or has ended.
void wait_for_all(Comm &comm, std::atomic<int> Member::*done) {
  for (;;) {
    const uint32_t seen = comm.shared->changed;
    bool all = comm.running == 0;
    for (int r = 0; r < comm.world; r++)
      all = all && (comm.member(r).*done || comm.member(r).aborted || !comm.shared->alive(r));
    if (all) return;
    comm.shared->sleep(seen);
  }
}
}  // namespace

Comm::~Comm() {
  if (shared) munmap_shared(shared, world);
}

void Comm::fail(Result code, const std::string &text) {
  int none = ncclSuccess;
  if (error.compare_exchange_strong(none, code)) refuse(code, "rank " + std::to_string(rank) + ": " + text);
  if (shared) shared->wake();
}

void Comm::look_around() {
  static const bool wanted = [] {
    const char *value = getenv("SIMNCCL_PEER_DEATH");
    if (!value || !strcmp(value, "hang")) return false;
    if (!strcmp(value, "error")) return true;
    fprintf(stderr, "simnccl: SIMNCCL_PEER_DEATH=%s is not known; expected hang or error\n", value);
    exit(2);
  }();
  for (int r = 0; wanted && r < world; r++) {
    if (member(r).pid > 0 && !member(r).destroyed && !shared->alive(r)) fail(ncclRemoteError, "the process of rank " + std::to_string(r) + " is gone");
  }
}

CommRef find_comm(void *handle) {
  std::lock_guard<std::mutex> lock(registry_mutex());
  const auto i = registry().find(handle);
  return i == registry().end() ? nullptr : i->second;
}

Result refuse(Result code, const std::string &text) {
  std::lock_guard<std::mutex> lock(registry_mutex());
  last_error() = text;
  return code;
}

Result unable(Comm &comm, const char *call) {
  if (comm.aborted) return refuse(ncclInvalidUsage, std::string(call) + ": the communicator was aborted");
  if (comm.error) return (Result)comm.error.load();
  if (comm.busy || comm.polls > 0)
    return refuse(ncclInvalidArgument, std::string(call) + ": the call before is still in progress; ask ncclCommGetAsyncError until it is not");
  return ncclSuccess;
}
}  // namespace simnccl
using namespace simnccl;

NCCL_API int ncclGetVersion(int *version) {
  if (!version) return refuse(ncclInvalidArgument, "ncclGetVersion: null");
  *version = VERSION;
  return ncclSuccess;
}
NCCL_API const char *ncclGetErrorString(int code) {
  switch (code) {
    case ncclSuccess: return "no error";
    case ncclUnhandledCudaError: return "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    case ncclSystemError: return "unhandled system error (run with NCCL_DEBUG=INFO for details)";
    case ncclInternalError: return "internal error - please report this issue to the NCCL developers";
    case ncclInvalidArgument: return "invalid argument (run with NCCL_DEBUG=WARN for details)";
    case ncclInvalidUsage: return "invalid usage (run with NCCL_DEBUG=WARN for details)";
    case ncclRemoteError: return "remote process exited or there was a network error";
    case ncclInProgress: return "NCCL operation in progress";
    default: return "unknown result code";
  }
}
NCCL_API const char *ncclGetLastError(void *) {
  static thread_local std::string copy;
  std::lock_guard<std::mutex> lock(registry_mutex());
  copy = last_error();
  return copy.c_str();
}
NCCL_API int ncclGetUniqueId(ncclUniqueId *id) {
  if (!id) return refuse(ncclInvalidArgument, "ncclGetUniqueId: null");
  const std::string text = make_id(*id);
  return text.empty() ? ncclSuccess : refuse(ncclSystemError, text);
}

NCCL_API int ncclCommInitRankConfig(void **out, int world, ncclUniqueId id, int rank, ncclConfig_t *config) {
  if (!out || world < 1 || world > RANKS_MAX || rank < 0 || rank >= world)
    return refuse(ncclInvalidArgument, "ncclCommInitRank: rank " + std::to_string(rank) + " of " + std::to_string(world));
  *out = nullptr;
  if (config && (config->magic != CONFIG_MAGIC || config->size < offsetof(ncclConfig_t, cga_cluster_size)))
    return refuse(ncclInvalidArgument, "ncclCommInitRankConfig: the config was not initialized");
  const int blocking = config && config->blocking != UNDEFINED ? config->blocking : 1;
  if (blocking != 0 && blocking != 1) return refuse(ncclInvalidArgument, "ncclCommInitRankConfig: blocking is neither 0 nor 1");
  if (config && config->max_ctas != UNDEFINED && config->max_ctas < 1) return refuse(ncclInvalidArgument, "ncclCommInitRankConfig: maxCTAs");
  if (!cuda()) return refuse(ncclUnhandledCudaError, "no libcuda.so.1 is loaded");
  abort_hangs(rank);  // a fault that cannot be read is told now
  auto comm = std::make_shared<Comm>();
  comm->rank = rank, comm->world = world, comm->blocking = blocking;
  if (const int code = cuda()->cuCtxGetDevice(&comm->device)) return refuse(ncclUnhandledCudaError, cuda_text("cuCtxGetDevice", code));
  cuda()->cuDeviceGetPCIBusId(comm->bus, sizeof comm->bus, comm->device);
  if (const int code = cuda()->cuEventCreate(&comm->event, 2)) return refuse(ncclUnhandledCudaError, cuda_text("cuEventCreate", code));
  {
    std::lock_guard<std::mutex> lock(registry_mutex());
    registry()[comm.get()] = comm;
  }
  *out = comm.get();
  in_background(comm, [comm = comm.get(), id] { join(*comm, id); });
  if (!blocking) return ncclInProgress;
  if (Group::open()) return Group::add_join(comm), ncclSuccess;
  wait_until_idle(*comm);
  return comm->error;
}
NCCL_API int ncclCommInitRank(void **out, int world, ncclUniqueId id, int rank) {
  return ncclCommInitRankConfig(out, world, id, rank, nullptr);
}

NCCL_API int ncclCommGetAsyncError(void *handle, int *result) {
  const CommRef comm = find_comm(handle);
  if (!comm || !result) return refuse(ncclInvalidArgument, "ncclCommGetAsyncError: no such communicator");
  *result = comm->error;
  if (comm->error == ncclSuccess && (comm->busy || comm->polls > 0)) {
    if (comm->polls > 0) comm->polls--;
    *result = ncclInProgress;
  }
  return ncclSuccess;
}

NCCL_API int ncclCommFinalize(void *handle) {
  const CommRef comm = find_comm(handle);
  if (!comm) return refuse(ncclInvalidArgument, "ncclCommFinalize: no such communicator");
  if (const Result code = unable(*comm, "ncclCommFinalize")) return code;
  if (comm->finalized) return refuse(ncclInvalidArgument, "ncclCommFinalize: it was called before");
  in_background(comm, [comm = comm.get()] { finalize(*comm); });
  if (!comm->blocking) return ncclInProgress;
  wait_until_idle(*comm);
  return comm->error;
}
// Returns when all ranks have called it.
NCCL_API int ncclCommDestroy(void *handle) {
  const CommRef comm = find_comm(handle);
  if (!handle) return ncclSuccess;
  if (!comm) return refuse(ncclInvalidArgument, "ncclCommDestroy: no such communicator");
  wait_until_idle(*comm);
  if (comm->shared && !comm->error && !comm->aborted) {
    if (!comm->finalized) finalize(*comm);
    comm->self().destroyed = 1;
    comm->shared->wake();
    wait_for_all(*comm, &Member::destroyed);
  }
  forget(handle);
  return ncclSuccess;
}
// What waits in this rank's host functions returns, the call itself when all ranks that are left have aborted, too.
NCCL_API int ncclCommAbort(void *handle) {
  const CommRef comm = find_comm(handle);
  if (!handle) return ncclSuccess;
  if (!comm) return refuse(ncclInvalidArgument, "ncclCommAbort: no such communicator");
  comm->aborted = true;
  if (comm->shared) comm->shared->wake();
  wait_until_idle(*comm);
  if (comm->shared) {
    comm->self().aborted = 1;
    comm->shared->wake();
    while (abort_hangs(comm->rank)) pause();
    wait_for_all(*comm, &Member::aborted);
  }
  forget(handle);
  return ncclSuccess;
}

namespace {
template <class F> int ask(void *handle, int *out, const char *name, F value) {
  const CommRef comm = find_comm(handle);
  if (!comm || !out) return refuse(ncclInvalidArgument, std::string(name) + ": no such communicator");
  *out = value(*comm);
  return ncclSuccess;
}
}  // namespace
NCCL_API int ncclCommCount(void *handle, int *out) {
  return ask(handle, out, __func__, [](Comm &c) { return c.world; });
}
NCCL_API int ncclCommUserRank(void *handle, int *out) {
  return ask(handle, out, __func__, [](Comm &c) { return c.rank; });
}
NCCL_API int ncclCommCuDevice(void *handle, int *out) {
  return ask(handle, out, __func__, [](Comm &c) { return c.device; });
}
NCCL_API int ncclCommSplit(void *, int, int, void **out, ncclConfig_t *) {
  if (out) *out = nullptr;
  return refuse(ncclInvalidUsage, "ncclCommSplit: not covered by the stand-in");
}
