// rank_top_k: the k largest classes of each row, the largest first, of equal ones the lower class. graph::Op TopK.
//
// logits f32 [rows, classes]; y i32 [rows, k], k ≤ classes; −1 in all of a row with a NaN. Any alignment.
// k rounds over a row that is staged in shared memory where `staged`: each finds what comes next after the round before.
// Bytes moved: the logits once. Not measured on hardware.
#include "softmax.cuh"

struct TopKArgs {
  const float *logits;
  int32_t *y;
  uint32_t classes, k, staged, pad;
};
static_assert(sizeof(TopKArgs) == 32, "cuda/src/rank.rs asserts the same");

struct Ranked {
  float v;
  int i;
};
DEVICE bool before(const Ranked &a, const Ranked &b) { return a.v > b.v || (a.v == b.v && a.i < b.i); }

// The first of a block's values in rank order, for every thread.
template <int THREADS> DEVICE Ranked block_first(Ranked x, Ranked *scratch) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) {
    const Ranked other{__shfl_xor_sync(0xffffffffu, x.v, d), __shfl_xor_sync(0xffffffffu, x.i, d)};
    if (before(other, x)) x = other;
  }
  if (THREADS == 32) return x;
  __syncthreads();  // readers of the round before have read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = scratch[0];
#pragma unroll
  for (int w = 1; w < THREADS / 32; w++) {
    if (before(scratch[w], x)) x = scratch[w];
  }
  return x;
}

// A block a row.
template <int THREADS> DEVICE void top_k(const TopKArgs &a) {
  DYN_SHARED(float, memory);
  __shared__ Ranked scratch[32];
  __shared__ float flags[32];
  const float *z = a.logits + (size_t)blockIdx.x * a.classes;
  float nan = 0.f;
  for (uint32_t j = threadIdx.x; j < a.classes; j += THREADS) {  // later rounds read what the thread wrote itself
    const float v = z[j];
    if (a.staged) memory[j] = v;
    if (v != v) nan = 1.f;
  }
  nan = block_max<THREADS>(nan, flags);
  if (a.staged) z = memory;
  Ranked last{INFINITY, -1};
  for (uint32_t i = 0; i < a.k; i++) {
    Ranked next{-INFINITY, 0x7fffffff};
    for (uint32_t j = threadIdx.x; j < a.classes; j += THREADS) {
      const Ranked x{z[j], (int)j};
      if (before(last, x) && before(x, next)) next = x;
    }
    last = block_first<THREADS>(next, scratch);
    if (threadIdx.x == 0) a.y[(size_t)blockIdx.x * a.k + i] = nan > 0.f ? -1 : last.i;
  }
}
extern "C" __global__ void __launch_bounds__(32) rank_top_k_warp(const __grid_constant__ TopKArgs a) { top_k<32>(a); }
KERNEL_EXPORT(rank_top_k_warp)
extern "C" __global__ void __launch_bounds__(256) rank_top_k_block(const __grid_constant__ TopKArgs a) { top_k<256>(a); }
KERNEL_EXPORT(rank_top_k_block)
