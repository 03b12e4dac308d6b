// Softmax statistics of a row that a whole block of THREADS works on.
#pragma once
#include "reduce.cuh"

// The largest of a block's values, NaN left out, for every thread. `scratch` as for `block_sum`.
template <int THREADS> DEVICE float block_max(float v, float *scratch) {
  v = warp_max(v);
  if (THREADS == 32) return v;
  __syncthreads();  // readers of the call before have read
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  v = scratch[0];
#pragma unroll
  for (int w = 1; w < THREADS / 32; w++) v = fmaxf(v, scratch[w]);
  return v;
}

// max x and S = Σ exp((x − max)/tau) over the row but its element `without` (-1: none). A NaN in x makes S one: the maximum
// leaves it out, the sum does not.
struct SoftmaxSums {
  float max, sum;
};
template <int THREADS>
DEVICE SoftmaxSums softmax_sums(const float *x, uint32_t n, float tau, int without, float *scratch) {
  float max = -INFINITY, sum = 0.f;
  for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
    if ((int)j != without) max = fmaxf(max, x[j]);
  }
  max = block_max<THREADS>(max, scratch);
  for (uint32_t j = threadIdx.x; j < n; j += THREADS) {
    if ((int)j != without) sum += expf((x[j] - max) / tau);
  }
  return {max, block_sum<THREADS>(sum, scratch)};
}
