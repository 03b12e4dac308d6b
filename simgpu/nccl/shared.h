// What the ranks of a communicator share: a memory file with a place for each rank. It has no name, so nothing is left behind however a
// process ends: the unique id says which open file of which process it is, and a rank opens it through /proc.
#pragma once
#include "nccl_api.h"
#include <atomic>
#include <string>

namespace simnccl {
constexpr int RANKS_MAX = 64;
constexpr size_t CHUNK = 1 << 20;     // bytes that a rank gives at a time
constexpr int LOOK_AROUND_MS = 50;    // how often who waits looks whether the others live

// What a rank called; equal on all, but for the rank itself.
struct Call {
  int kind, type, root;
  uint64_t count;
};

constexpr int JOINING = -1;

// Zero bytes are a valid beginning: whoever comes first finds it ready.
struct Member {
  std::atomic<int> pid;  // 0: has not joined; JOINING: what follows is being written
  uint64_t born;         // of the process, in clock ticks since boot
  uint64_t host;         // hash of the host's name, or of NCCL_HOSTID
  char bus[16];          // of the GPU
  std::atomic<uint64_t> posted;  // chunks that lie in its slots, ever
  std::atomic<int> finalized, destroyed, aborted;
};

struct Slot {
  Call call;
  alignas(64) unsigned char data[CHUNK];
};

struct Shared {
  uint64_t nonce;
  std::atomic<int> world, joined;
  std::atomic<uint32_t> changed;
  Member members[RANKS_MAX];
  // Chunk i of a rank lies in slot i % 2: who posts i + 1 has read i, so all have read i - 1 when i is complete.
  Slot slots[1][2];  // of `world` ranks

  static size_t bytes(int world) { return sizeof(Shared) + (size_t)(world - 1) * 2 * sizeof(Slot); }
  void wake();                 // all who wait for a change
  void sleep(uint32_t seen);   // until something changed after `seen`, LOOK_AROUND_MS at most
  bool alive(int rank) const;  // joined, and its process runs; a stopped one does
};

uint64_t born(int pid);  // 0: no such process, or it has ended

// A new id: makes the file. Empty text: done.
std::string make_id(ncclUniqueId &id);
// Maps the file of an id for `world` ranks.
std::string open_shared(const ncclUniqueId &id, int world, Shared **out);
void munmap_shared(Shared *shared, int world);
// All ranks have joined: this process needs the file's descriptor no more, if it was the one that made it.
void close_id(uint64_t nonce);
}  // namespace simnccl
