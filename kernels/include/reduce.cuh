// Sums over a warp and over a block, in an order that depends on nothing but the block size.
#pragma once
#include "target.cuh"

DEVICE float warp_sum(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
DEVICE double warp_sum(double v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
DEVICE float warp_max(float v) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}

// The sum over all threads of a block of THREADS (a multiple of 32), for every thread. `scratch`: T[32] of shared memory that
// nobody else uses between two calls' barriers.
template <int THREADS, class T> DEVICE T block_sum(T v, T *scratch) {
  v = warp_sum(v);
  if (THREADS == 32) return v;
  __syncthreads();  // readers of the call before have read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
#pragma unroll
  for (int w = 1; w < THREADS / 32; w++) v += scratch[w];
  return v;
}
