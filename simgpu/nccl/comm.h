// A communicator of one rank, and how it waits for the others.
#pragma once
#include "cuda.h"
#include "shared.h"
#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace simnccl {
struct Comm {
  int rank = 0, world = 0, device = 0;
  bool blocking = true;
  char bus[16] = "";
  Shared *shared = nullptr;
  std::atomic<bool> busy{false};  // joining or finalizing
  std::atomic<int> error{ncclSuccess};
  std::atomic<bool> aborted{false}, finalized{false};
  std::atomic<int> polls{0};  // answers of ncclInProgress still due, as if a thread of the library were at work
  std::atomic<int> queued{0}, running{0};  // host functions: submitted outside of captures and not done; of any origin and running

  // Of the threads that call.
  std::mutex calls;
  bool connected = false;  // a collective was called before
  void *event = nullptr, *last_stream = nullptr;
  unsigned long long last_capture = 0;

  // Of the host function that runs: one at a time.
  std::mutex executing;
  uint64_t chunks = 0, collectives = 0;
  std::map<std::string, uint64_t> collectives_of;

  ~Comm();
  Member &member(int r) { return shared->members[r]; }
  Member &self() { return shared->members[rank]; }
  // The first error of the communicator stays.
  void fail(Result code, const std::string &text);
  // Whether `ready` came true; false: this rank gave up, or the communicator has failed.
  template <class F> bool wait(F ready) {
    for (;;) {
      const uint32_t seen = shared->changed;
      if (ready()) return true;
      if (aborted || error) return false;
      shared->sleep(seen);
      if (shared->changed == seen) look_around();
    }
  }
  // A member's process is gone: nothing, as with most transports of NCCL, or an error by SIMNCCL_PEER_DEATH=error.
  void look_around();
};
typedef std::shared_ptr<Comm> CommRef;

// A live communicator by its handle, or null.
CommRef find_comm(void *handle);
// Sets what ncclGetLastError says, returns the code.
Result refuse(Result code, const std::string &text);
// What a call says that finds the communicator unable: aborted, failed, or still busy.
Result unable(Comm &comm, const char *call);

// ---- groups of calls
struct Group {
  static bool open();                  // this thread is inside of one
  static void add_join(CommRef comm);  // to wait for at the end
};

// ---- what a host function does
struct Collective {
  CommRef comm;
  const char *name;
  Call call;
  const unsigned char *send;
  unsigned char *receive;
  bool captured = false;
};
enum Kind : int { ALL_REDUCE = 1, BROADCAST, ALL_GATHER, REDUCE_SCATTER, REDUCE };
size_t type_bytes(int type);  // 0: not one that the stand-in has
void run_collective(void *collective);
}  // namespace simnccl
