// The device side of CUDA C++ as g++ sees it: what a kernel may use, executed by the stand-in GPU.
//
// A CUDA thread is a fiber. It runs until it must wait (block barrier, warp-wide operation), so the order of threads is the
// scheduler's choice. A warp-wide operation is a collective: each lane posts its operands, the last to arrive works for all.
// There is no implicit lockstep: a forgotten __syncwarp shows.
#pragma once
#ifdef __CUDACC__
#error "simgpu.h stands in for CUDA; nvcc does not need it"
#endif
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#if defined(__SANITIZE_ADDRESS__)
#define __shared__ static  // an ordinary global has redzones; this flavour runs kernels on one OS thread at a time
#else
#define __shared__ static thread_local  // a block lives on one OS thread
#endif

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simgpu {

struct Index { unsigned x, y, z; };

// What the threads of a block have in common.
struct BlockView {
  Index index, dim, grid;
  unsigned char *shared;
  size_t shared_bytes;
};

// What a kernel sees of its own thread.
struct ThreadView {
  Index tid;
  unsigned lane;
  const BlockView *block;
};

extern thread_local ThreadView *self;

// ---- waiting
void barrier(const char *at);
// A collective of the lanes in `mask`: `all` runs once, when the last lane has arrived; operands of absent lanes are null.
void collective(unsigned mask, const char *kind, void *operand, void (*all)(void **operands), const char *at);
[[noreturn]] void fail(const char *what, const char *at);

// ---- asynchronous copies: they land when the program waits for them, or at once, as the schedule says
struct AsyncCopy {
  void *to;
  const void *from;  // null: zeros
  unsigned bytes;
};
bool async_is_early();
void async_push(const AsyncCopy &copy, const char *at);
void async_commit();
bool async_pop(int groups_left, AsyncCopy *copy);  // the oldest copy outside the newest `groups_left` groups

inline void async_land(const AsyncCopy &copy) {
  // Word by word in the thread that waits, so that sanitizers see who wrote.
  for (unsigned i = 0; i < copy.bytes / 4; i++) {
    ((volatile uint32_t *)copy.to)[i] = copy.from ? ((const volatile uint32_t *)copy.from)[i] : 0;
  }
}
inline void async_copy(void *to, const void *from, unsigned bytes, bool valid, const char *at) {
  if (((uintptr_t)to | (valid ? (uintptr_t)from : 0)) % bytes) fail("cp.async: misaligned address", at);
  const AsyncCopy copy{to, valid ? from : nullptr, bytes};
  if (async_is_early()) async_land(copy);
  else async_push(copy, at);
}
inline void async_wait(int groups_left) {
  AsyncCopy copy;
  while (async_pop(groups_left, &copy)) async_land(copy);
}

// ---- tensor cores, whole warp tiles: d[mt * nt] += a[mt] x b[nt] with the lane layouts of mma.sync
struct MmaTile {
  float (*d)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
  int mt, nt;
};
void mma_bf16_all(void **operands);  // m16n8k16
void mma_tf32_all(void **operands);  // m16n8k8
struct Matrices {
  uint32_t row[4];  // the 16 bytes that this lane addresses
  uint32_t *out;
  int count;
  bool transposed;
};
void ldmatrix_all(void **operands);
inline void ldmatrix(uint32_t *out, const void *row, int count, bool transposed, const char *at) {
  Matrices m{{}, out, count, transposed};
  if (self->lane < 8u * count) {
    if ((uintptr_t)row % 16) fail("ldmatrix: misaligned row", at);
    for (int i = 0; i < 4; i++) m.row[i] = ((const uint32_t *)row)[i];  // each lane reads its own row: sanitizers see it
  }
  collective(~0u, transposed ? "ldmatrix.trans" : "ldmatrix", &m, &ldmatrix_all, at);
}

// ---- shuffles and votes
template <class T> struct Shuffle { T in, out; unsigned from; };
template <class T> void shuffle_all(void **operands) {
  for (int lane = 0; lane < 32; lane++) {
    auto *s = (Shuffle<T> *)operands[lane];
    auto *from = s ? (Shuffle<T> *)operands[s->from & 31] : nullptr;
    if (s) s->out = from ? from->in : s->in;
  }
}
template <class T> T shuffle(unsigned mask, T value, unsigned from, const char *kind, const char *at) {
  Shuffle<T> s{value, value, from};
  collective(mask, kind, &s, &shuffle_all<T>, at);
  return s.out;
}
struct Vote { bool in; unsigned out; };
void vote_all(void **operands);
inline unsigned ballot(unsigned mask, bool predicate, const char *at) {
  Vote v{predicate, 0};
  collective(mask, "vote", &v, &vote_all, at);
  return v.out;
}
inline unsigned lane_down(unsigned d) { return self->lane + d < 32 ? self->lane + d : self->lane; }
inline unsigned lane_up(unsigned d) { return self->lane >= d ? self->lane - d : self->lane; }

// ---- kernels by name
struct Kernel {
  const char *name;
  void (*call)(const void *args);
  size_t args_bytes;
  Kernel *next;
  Kernel(const char *name, void (*call)(const void *), size_t args_bytes);
};
template <auto F> struct Entry;
template <class Args, void (*F)(Args)> struct Entry<F> {
  static void call(const void *args) { F(*(const Args *)args); }
  static constexpr size_t bytes = sizeof(Args);
};
}  // namespace simgpu

#define SIMGPU_TEXT2(x) #x
#define SIMGPU_TEXT(x) SIMGPU_TEXT2(x)
#define SIMGPU_AT __FILE__ ":" SIMGPU_TEXT(__LINE__)
#define KERNEL_EXPORT(k) static simgpu::Kernel simgpu_kernel_##k(#k, &simgpu::Entry<&k>::call, simgpu::Entry<&k>::bytes);
#define DYN_SHARED(T, name) T *name = reinterpret_cast<T *>(simgpu::self->block->shared)

#define threadIdx (simgpu::self->tid)
#define blockIdx (simgpu::self->block->index)
#define blockDim (simgpu::self->block->dim)
#define gridDim (simgpu::self->block->grid)
constexpr int warpSize = 32;
#define __syncthreads() simgpu::barrier(SIMGPU_AT)
#define __syncwarp(...) simgpu::collective(~0u, "syncwarp", nullptr, nullptr, SIMGPU_AT)
#define __shfl_sync(mask, v, lane) simgpu::shuffle(mask, v, lane, "shfl", SIMGPU_AT)
#define __shfl_xor_sync(mask, v, x) simgpu::shuffle(mask, v, simgpu::self->lane ^ (x), "shfl.xor", SIMGPU_AT)
#define __shfl_down_sync(mask, v, d) simgpu::shuffle(mask, v, simgpu::lane_down(d), "shfl.down", SIMGPU_AT)
#define __shfl_up_sync(mask, v, d) simgpu::shuffle(mask, v, simgpu::lane_up(d), "shfl.up", SIMGPU_AT)
#define __ballot_sync(mask, p) simgpu::ballot(mask, p, SIMGPU_AT)
#define __any_sync(mask, p) (simgpu::ballot(mask, p, SIMGPU_AT) != 0)
#define __all_sync(mask, p) (simgpu::ballot(mask, p, SIMGPU_AT) == (mask))

inline int atomicAdd(int *p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
inline unsigned atomicAdd(unsigned *p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_ACQ_REL); }
inline unsigned atomicOr(unsigned *p, unsigned v) { return __atomic_fetch_or(p, v, __ATOMIC_ACQ_REL); }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T> inline T __ldg(const T *p) { return *p; }
inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
