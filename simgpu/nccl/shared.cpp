#include "shared.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <random>

namespace simnccl {
namespace {
struct Id {  // what the 128 bytes hold
  char word[8];
  int pid, file;
  uint64_t born, nonce;
};
constexpr char WORD[8] = "simnccl";

std::mutex &files_mutex() {
  static std::mutex *m = new std::mutex;
  return *m;
}
std::map<uint64_t, int> &files() {  // open files of ids made here, by nonce
  static auto *f = new std::map<uint64_t, int>;
  return *f;
}

std::string failed(const std::string &what) { return what + ": " + strerror(errno); }
}  // namespace

void Shared::wake() {
  changed.fetch_add(1);
  syscall(SYS_futex, &changed, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Shared::sleep(uint32_t seen) {
  const timespec limit{0, LOOK_AROUND_MS * 1000000};
  syscall(SYS_futex, &changed, FUTEX_WAIT, seen, &limit, nullptr, 0);
}

bool Shared::alive(int rank) const {
  const int pid = members[rank].pid;
  return pid > 0 && (pid == getpid() || born(pid) == members[rank].born);
}

uint64_t born(int pid) {
  char text[512];
  FILE *f = fopen(("/proc/" + std::to_string(pid) + "/stat").c_str(), "r");
  if (!f) return 0;
  const size_t n = fread(text, 1, sizeof text - 1, f);
  fclose(f);
  text[n] = 0;
  const char *after_name = strrchr(text, ')');
  char state = 'Z';
  unsigned long long ticks = 0;
  if (after_name) sscanf(after_name + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &state, &ticks);
  return state == 'Z' || state == 'X' ? 0 : ticks;
}

std::string make_id(ncclUniqueId &id) {
  Id own{};
  memcpy(own.word, WORD, sizeof WORD);
  std::random_device random;
  own.nonce = (uint64_t)random() << 32 | random();
  own.pid = getpid(), own.born = born(own.pid);
  own.file = memfd_create("simnccl", MFD_CLOEXEC);
  if (own.file < 0) return failed("memfd_create");
  if (pwrite(own.file, &own.nonce, sizeof own.nonce, 0) != sizeof own.nonce) return failed("write to a memory file");
  memset(&id, 0, sizeof id);
  memcpy(&id, &own, sizeof own);
  std::lock_guard<std::mutex> lock(files_mutex());
  files()[own.nonce] = own.file;
  return {};
}

std::string open_shared(const ncclUniqueId &id, int world, Shared **out) {
  Id root;
  memcpy(&root, &id, sizeof root);
  if (memcmp(root.word, WORD, sizeof WORD)) return "the unique id is not one of ncclGetUniqueId of this library";
  const std::string path = "/proc/" + std::to_string(root.pid) + "/fd/" + std::to_string(root.file);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (file < 0 || born(root.pid) != root.born) {
    const std::string text = failed("the process that made the unique id, " + std::to_string(root.pid) + ", is not there: " + path);
    if (file >= 0) close(file);
    return text;
  }
  struct stat info;
  const size_t bytes = Shared::bytes(world);
  uint64_t nonce = 0;
  void *at = MAP_FAILED;
  std::string text;
  if (pread(file, &nonce, sizeof nonce, 0) != sizeof nonce || nonce != root.nonce) text = "the unique id was used up before: " + path;
  else if (fstat(file, &info) || ((size_t)info.st_size < bytes && ftruncate(file, bytes))) text = failed("ftruncate");
  else if ((at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)) == MAP_FAILED) text = failed("mmap");
  close(file);
  *out = (Shared *)at;
  return text;
}

void munmap_shared(Shared *shared, int world) { munmap(shared, Shared::bytes(world)); }

void close_id(uint64_t nonce) {
  std::lock_guard<std::mutex> lock(files_mutex());
  const auto i = files().find(nonce);
  if (i == files().end()) return;
  close(i->second);
  files().erase(i);
}
}  // namespace simnccl
