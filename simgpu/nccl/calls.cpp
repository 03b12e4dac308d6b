// The collective calls: checks, order between streams, submission; and groups of calls.
#include "comm.h"
#include <cstring>
#include <functional>
#include <thread>
#include <vector>
#include <unistd.h>

namespace simnccl {
namespace {
struct Open {
  int depth = 0;
  Result error = ncclSuccess;
  std::vector<std::function<Result()>> calls;
  std::vector<CommRef> joins;
};
thread_local Open group;

// Null where there is nothing to say; `bytes` from `at` are the device's own.
std::string check_memory(const Comm &comm, const void *at, size_t bytes) {
  if (!bytes) return {};
  const auto address = (unsigned long long)at;
  unsigned long long base = 0;
  size_t size = 0;
  int device = -1;
  unsigned type = 0;
  if (cuda()->cuMemGetAddressRange_v2(&base, &size, address) || cuda()->cuPointerGetAttribute(&type, 2, address) ||
      cuda()->cuPointerGetAttribute(&device, 9, address))
    return "is not a device pointer";
  if (type == 2 && device != comm.device) return "is memory of device " + std::to_string(device) + ", the rank's is " + std::to_string(comm.device);
  if (size - (address - base) < bytes) return "has " + std::to_string(size - (address - base)) + " bytes left, not " + std::to_string(bytes);
  return {};
}

Result driver_refuses(const char *call, int code) { return refuse(ncclUnhandledCudaError, cuda_text(call, code)); }

// Collectives of a communicator run one after another in the order of their calls, whatever their streams; so it is in NCCL.
Result submit(const Collective &c, void *stream) {
  Comm &comm = *c.comm;
  std::lock_guard<std::mutex> lock(comm.calls);
  int status = 0;
  unsigned long long capture = 0;
  if (const int code = cuda()->cuStreamGetCaptureInfo_v3(stream, &status, &capture, nullptr, nullptr, nullptr, nullptr))
    return driver_refuses("cuStreamGetCaptureInfo", code);
  if (!status) capture = 0;
  if (comm.connected && comm.last_stream != stream && comm.last_capture == capture) {
    if (const int code = cuda()->cuStreamWaitEvent(stream, comm.event, 0)) return driver_refuses("cuStreamWaitEvent", code);
  }
  Collective *work = new Collective(c);  // of a capture: stays, nobody says when the last graph with it is gone
  work->captured = status != 0;
  if (!work->captured) comm.queued++;
  if (const int code = cuda()->cuLaunchHostFunc(stream, run_collective, work)) {
    if (!work->captured) comm.queued--;
    delete work;
    return driver_refuses("cuLaunchHostFunc", code);
  }
  if (const int code = cuda()->cuEventRecord(comm.event, stream)) return driver_refuses("cuEventRecord", code);
  comm.last_stream = stream, comm.last_capture = capture;
  // The first collective connects the ranks, which a communicator that does not block leaves to a thread.
  if (!comm.connected && !comm.blocking) comm.polls = 2;
  comm.connected = true;
  return comm.polls > 0 ? ncclInProgress : ncclSuccess;
}

Result check(const Collective &c, int op) {
  Comm &comm = *c.comm;
  const std::string name = std::string("nccl ") + c.name + ": ";
  if (const Result code = unable(comm, c.name)) return code;
  const size_t width = type_bytes(c.call.type), world = comm.world;
  if (!width) return refuse(ncclInvalidArgument, name + "type " + std::to_string(c.call.type) + " is not covered");
  if (op != ncclSum) return refuse(ncclInvalidArgument, name + "operation " + std::to_string(op) + " is not covered");
  if (c.call.root < 0 || c.call.root >= comm.world) return refuse(ncclInvalidArgument, name + "root " + std::to_string(c.call.root));
  const size_t bytes = c.call.count * width;
  const bool root = c.call.root == comm.rank, sends = c.call.kind != BROADCAST || root, receives = c.call.kind != REDUCE || root;
  const std::string send = sends ? check_memory(comm, c.send, c.call.kind == REDUCE_SCATTER ? bytes * world : bytes) : "";
  if (!send.empty()) return refuse(ncclInvalidArgument, name + "sendbuff " + send);
  const std::string receive = receives ? check_memory(comm, c.receive, c.call.kind == ALL_GATHER ? bytes * world : bytes) : "";
  if (!receive.empty()) return refuse(ncclInvalidArgument, name + "recvbuff " + receive);
  return ncclSuccess;
}

int call(void *handle, const char *name, Call what, int op, const void *send, void *receive, void *stream) {
  Collective c{find_comm(handle), name, what, (const unsigned char *)send, (unsigned char *)receive};
  if (!c.comm) return refuse(ncclInvalidArgument, std::string(name) + ": no such communicator");
  const Result code = check(c, op);
  if (!group.depth) return code ? code : submit(c, stream);
  if (code && !group.error) group.error = code;
  if (!code) group.calls.push_back([=] { return submit(c, stream); });
  return code;
}
}  // namespace

bool Group::open() { return group.depth > 0; }
void Group::add_join(CommRef comm) { group.joins.push_back(comm); }
}  // namespace simnccl
using namespace simnccl;

NCCL_API int ncclGroupStart() {
  group.depth++;
  return ncclSuccess;
}
NCCL_API int ncclGroupEnd() {
  if (!group.depth) return refuse(ncclInvalidUsage, "ncclGroupEnd: not in a group call");
  if (--group.depth) return ncclSuccess;
  const Open ended = std::move(group);
  group = Open{};
  if (ended.error) return ended.error;
  Result result = ncclSuccess;
  for (const CommRef &comm : ended.joins) {
    while (comm->busy) usleep(1000);
    if (comm->error) result = (Result)comm->error.load();
  }
  for (const auto &call : ended.calls) {
    const Result code = call();
    if (code && (!result || result == ncclInProgress)) result = code;
  }
  return result;
}

NCCL_API int ncclAllReduce(const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream) {
  return call(comm, "all_reduce", {ALL_REDUCE, type, 0, count}, op, send, receive, stream);
}
NCCL_API int ncclBroadcast(const void *send, void *receive, size_t count, int type, int root, void *comm, void *stream) {
  return call(comm, "broadcast", {BROADCAST, type, root, count}, ncclSum, send, receive, stream);
}
NCCL_API int ncclBcast(void *buffer, size_t count, int type, int root, void *comm, void *stream) {
  return ncclBroadcast(buffer, buffer, count, type, root, comm, stream);
}
NCCL_API int ncclAllGather(const void *send, void *receive, size_t count, int type, void *comm, void *stream) {
  return call(comm, "all_gather", {ALL_GATHER, type, 0, count}, ncclSum, send, receive, stream);
}
NCCL_API int ncclReduceScatter(const void *send, void *receive, size_t count, int type, int op, void *comm, void *stream) {
  return call(comm, "reduce_scatter", {REDUCE_SCATTER, type, 0, count}, op, send, receive, stream);
}
NCCL_API int ncclReduce(const void *send, void *receive, size_t count, int type, int op, int root, void *comm, void *stream) {
  return call(comm, "reduce", {REDUCE, type, root, count}, op, send, receive, stream);
}
