// The stand-in NCCL under two devices of one process: what the product's own tests do not call.
#include "../nccl/nccl_api.h"
#include "check.h"
#include <thread>
using namespace simnccl;

extern "C" {
int ncclGetUniqueId(ncclUniqueId *);
int ncclCommInitRank(void **, int, ncclUniqueId, int);
int ncclCommDestroy(void *);
int ncclCommCount(void *, int *);
int ncclCommUserRank(void *, int *);
int ncclCommCuDevice(void *, int *);
int ncclGroupStart();
int ncclGroupEnd();
int ncclAllReduce(const void *, void *, size_t, int, int, void *, void *);
int ncclReduceScatter(const void *, void *, size_t, int, int, void *, void *);
int ncclReduce(const void *, void *, size_t, int, int, int, void *, void *);
int ncclCommSplit(void *, int, int, void **, ncclConfig_t *);
}

static const unsigned RANKS = 2;

struct Rank {
  Handle context = nullptr, stream = nullptr;
  void *comm = nullptr;
};

// A thread joins for both devices, which only a group can do.
static std::vector<Rank> join() {
  std::vector<Rank> ranks(RANKS);
  ncclUniqueId id;
  OK(ncclGetUniqueId(&id));
  OK(ncclGroupStart());
  for (unsigned r = 0; r < RANKS; r++) {
    OK(cuDevicePrimaryCtxRetain(&ranks[r].context, r));
    OK(cuCtxSetCurrent(ranks[r].context));
    ranks[r].stream = new_stream();
    OK(ncclCommInitRank(&ranks[r].comm, RANKS, id, r));
  }
  OK(ncclGroupEnd());
  for (unsigned r = 0; r < RANKS; r++) {
    int count = 0, rank = -1, device = -1;
    OK(ncclCommCount(ranks[r].comm, &count));
    OK(ncclCommUserRank(ranks[r].comm, &rank));
    OK(ncclCommCuDevice(ranks[r].comm, &device));
    EQUAL(count, RANKS), EQUAL(rank, r), EQUAL(device, r);
  }
  return ranks;
}

template <class T> CUdeviceptr upload(const std::vector<T> &host) {
  CUdeviceptr at = 0;
  OK(cuMemAlloc_v2(&at, host.size() * sizeof(T)));
  OK(cuMemcpyHtoD_v2(at, host.data(), host.size() * sizeof(T)));
  return at;
}
template <class T> void expect(const Rank &rank, CUdeviceptr at, const std::vector<T> &expected) {
  std::vector<T> got(expected.size());
  OK(cuStreamSynchronize(rank.stream));
  OK(cuMemcpyDtoH_v2(got.data(), at, got.size() * sizeof(T)));
  for (size_t i = 0; i < got.size(); i++) EQUAL(got[i], expected[i]);
  OK(cuMemFree_v2(at));
}

// Parts that lie across chunks: a rank gives 3 MiB in chunks of 1 MiB, its share is 1.5 MiB.
static void shares(const Rank &rank, int r) {
  const size_t n = 192 << 10;
  std::vector<double> give(RANKS * n), share(n);
  for (size_t i = 0; i < give.size(); i++) give[i] = (double)(i % 1000) + r;
  for (size_t i = 0; i < n; i++) share[i] = 2.0 * ((r * n + i) % 1000) + 1;
  const CUdeviceptr from = upload(give), to = upload(std::vector<double>(n));
  OK(ncclReduceScatter((void *)from, (void *)to, n, ncclFloat64, ncclSum, rank.comm, rank.stream));
  expect(rank, to, share);
  OK(cuMemFree_v2(from));
}

static void reduces(const Rank &rank, int r) {
  const std::vector<int> give = {1 + r, -5, 1 << 30};
  const CUdeviceptr a = upload(give), b = upload(give);
  OK(ncclReduce((void *)a, (void *)a, 3, ncclInt32, ncclSum, 1, rank.comm, rank.stream));
  OK(ncclAllReduce((void *)b, (void *)b, 2, ncclInt32, ncclSum, rank.comm, rank.stream));
  expect(rank, a, r == 1 ? std::vector<int>{3, -10, INT32_MIN} : give);
  expect(rank, b, std::vector<int>{3, -10, 1 << 30});
}

static void refuses(const Rank &rank) {
  void *other = &other;
  EQUAL(ncclCommSplit(rank.comm, 0, 0, &other, nullptr), ncclInvalidUsage);
  EQUAL((long long)other, 0);
  const CUdeviceptr a = upload(std::vector<int>{1});
  EQUAL(ncclAllReduce((void *)a, (void *)a, 1, ncclInt32, 2, rank.comm, rank.stream), ncclInvalidArgument);
  EQUAL(ncclAllReduce((void *)a, (void *)a, 1, ncclFloat16, ncclSum, rank.comm, rank.stream), ncclInvalidArgument);
  EQUAL(ncclAllReduce((void *)a, (void *)a, 1, ncclInt32, ncclSum, nullptr, rank.stream), ncclInvalidArgument);
  EQUAL(ncclGroupEnd(), ncclInvalidUsage);
  OK(cuMemFree_v2(a));
}

int main() {
  OK(cuInit(0));
  const std::vector<Rank> ranks = join();
  std::vector<std::thread> threads;
  for (unsigned r = 0; r < RANKS; r++) {
    threads.emplace_back([&, r] {
      OK(cuCtxSetCurrent(ranks[r].context));
      refuses(ranks[r]);
      reduces(ranks[r], r);
      shares(ranks[r], r);
      OK(ncclCommDestroy(ranks[r].comm));
      EQUAL(ncclCommDestroy(ranks[r].comm), ncclInvalidArgument);
    });
  }
  for (std::thread &t : threads) t.join();
}
