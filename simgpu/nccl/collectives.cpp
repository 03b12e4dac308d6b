// The work of a collective: what a host function does on the thread that the driver gives it.
#include "comm.h"
#include "faults.h"
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstring>

namespace simnccl {
namespace {
float to_f32(uint16_t bits) {
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
}
uint16_t to_bf16(float value) {  // to nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// out[i] = ((r0 + r1) + r2) + …
template <class T> void add(unsigned char *out, const unsigned char *const *parts, int ranks, size_t bytes) {
  T *sum = (T *)out;
  const size_t n = bytes / sizeof(T);
  memmove(sum, parts[0], bytes);
  for (int r = 1; r < ranks; r++) {
    const T *part = (const T *)parts[r];
    for (size_t i = 0; i < n; i++) sum[i] = (T)(sum[i] + part[i]);
  }
}
void add_bf16(unsigned char *out, const unsigned char *const *parts, int ranks, size_t bytes) {
  for (size_t i = 0; i < bytes / 2; i++) {
    float sum = to_f32(((const uint16_t *)parts[0])[i]);
    for (int r = 1; r < ranks; r++) sum += to_f32(((const uint16_t *)parts[r])[i]);
    ((uint16_t *)out)[i] = to_bf16(sum);
  }
}
void add_parts(int type, unsigned char *out, const unsigned char *const *parts, int ranks, size_t bytes) {
  switch (type) {
    case ncclUint8: return add<uint8_t>(out, parts, ranks, bytes);
    case ncclInt32: return add<int32_t>(out, parts, ranks, bytes);
    case ncclFloat32: return add<float>(out, parts, ranks, bytes);
    case ncclFloat64: return add<double>(out, parts, ranks, bytes);
    case ncclBfloat16: return add_bf16(out, parts, ranks, bytes);
  }
}

std::string call_text(const Call &c) {
  static const char *const names[] = {"?", "all_reduce", "broadcast", "all_gather", "reduce_scatter", "reduce"};
  return std::string(names[c.kind]) + " of " + std::to_string(c.count) + " elements of type " + std::to_string(c.type) + ", root " +
         std::to_string(c.root);
}

// One run of one collective.
struct Run {
  Comm &comm;
  const Collective &c;
  const size_t width = type_bytes(c.call.type);
  // Bytes that a rank gives in all; of the parts of a reduce_scatter, each is count elements.
  const size_t total = c.call.count * width * (c.call.kind == REDUCE_SCATTER ? comm.world : 1);

  Slot &slot(int rank) const { return comm.shared->slots[rank][comm.chunks % 2]; }

  void give(size_t at, size_t bytes) const {
    slot(comm.rank).call = c.call;
    if (c.call.kind != BROADCAST || c.call.root == comm.rank) memcpy(slot(comm.rank).data, c.send + at, bytes);
  }

  void sum(unsigned char *out, size_t from, size_t bytes) const {
    const unsigned char *parts[RANKS_MAX];
    for (int r = 0; r < comm.world; r++) parts[r] = slot(r).data + from;
    add_parts(c.call.type, out, parts, comm.world, bytes);
  }

  void take(size_t at, size_t bytes) const {
    switch (c.call.kind) {
      case ALL_REDUCE: return sum(c.receive + at, 0, bytes);
      case REDUCE:
        if (c.call.root == comm.rank) sum(c.receive + at, 0, bytes);
        return;
      case BROADCAST: memcpy(c.receive + at, slot(c.call.root).data, bytes); return;
      case ALL_GATHER:
        for (int r = 0; r < comm.world; r++) memcpy(c.receive + r * total + at, slot(r).data, bytes);
        return;
      case REDUCE_SCATTER: {  // the share of this rank that lies in the chunk
        const size_t share = c.call.count * width, begin = std::max(at, comm.rank * share);
        const size_t end = std::min(at + bytes, (comm.rank + 1) * share);
        if (begin < end) sum(c.receive + begin - comm.rank * share, begin - at, end - begin);
        return;
      }
    }
  }

  bool same_calls() const {
    for (int r = 1; r < comm.world; r++) {
      const Call &a = slot(0).call, &b = slot(r).call;
      if (a.kind == b.kind && a.type == b.type && a.count == b.count && a.root == b.root) continue;
      comm.fail(ncclInvalidArgument, "collective " + std::to_string(comm.collectives) + ": rank " + std::to_string(r) + " called " +
                                         call_text(b) + ", rank 0 " + call_text(a));
      return false;
    }
    return true;
  }

  // A chunk at a time, one at least: an empty collective meets the others, too.
  bool exchange() const {
    size_t at = 0;
    do {
      const size_t bytes = std::min(CHUNK, total - at);
      give(at, bytes);
      comm.self().posted = comm.chunks + 1;
      comm.shared->wake();
      const bool complete = comm.wait([&] {
        for (int r = 0; r < comm.world; r++)
          if (comm.member(r).posted <= comm.chunks) return false;
        return true;
      });
      if (!complete || !same_calls()) return false;
      take(at, bytes);
      comm.chunks++;
      at += bytes;
    } while (at < total);
    return true;
  }

  void flip_a_bit() const {
    const bool has_result = c.call.count && (c.call.kind != REDUCE || c.call.root == comm.rank);
    if (has_result) c.receive[0] ^= 1;
  }
};

// As with NCCL, work that has failed or was told to hang stays on its stream until the communicator is aborted.
void wait_for_abort(Comm &comm) {
  while (!comm.aborted) {
    const uint32_t seen = comm.shared->changed;
    if (!comm.aborted) comm.shared->sleep(seen);
  }
}

void run(Comm &comm, const Collective &c) {
  if (comm.aborted) return;
  const Fault fault = fault_at(comm.rank, c.name, comm.collectives_of[c.name]++, comm.collectives);
  if (fault.act == Act::leave) {
    fprintf(stderr, "simnccl: rank %d leaves at %s, as ordered\n", comm.rank, c.name);
    _exit(1);
  }
  if (fault.act == Act::hang) return wait_for_abort(comm);
  if (fault.act == Act::async_error) comm.fail(ncclSystemError, std::string("an error at ") + c.name + ", as ordered");
  for (int ms = 0; fault.act == Act::delay && ms < fault.delay_ms && !comm.aborted; ms++) usleep(1000);
  const Run run{comm, c};
  if (comm.error || !run.exchange()) return wait_for_abort(comm);
  if (fault.act == Act::wrong_bits) run.flip_a_bit();
  comm.collectives++;
}
}  // namespace

size_t type_bytes(int type) {
  switch (type) {
    case ncclUint8: return 1;
    case ncclBfloat16: return 2;
    case ncclInt32: case ncclFloat32: return 4;
    case ncclFloat64: return 8;
    default: return 0;
  }
}

void run_collective(void *data) {
  Collective *c = (Collective *)data;
  const CommRef comm = c->comm;
  comm->running++;
  {
    std::lock_guard<std::mutex> lock(comm->executing);
    if (comm->aborted || find_comm(comm.get())) run(*comm, *c);
    else fprintf(stderr, "simnccl: a graph runs %s on a communicator that was destroyed\n", c->name);
  }
  if (!c->captured) comm->queued--, delete c;  // a graph may run it again
  comm->running--;
  if (comm->shared) comm->shared->wake();
}
}  // namespace simnccl
