// Warps leave their sums in shared memory; one warp adds them up before all are there.
#include "planted.cuh"

template <bool BUG> DEVICE void barrier_in_reduction(const PlantedArgs &a) {
  __shared__ float s[THREADS / 32];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  for (unsigned k = 0; k < THREADS; k++) {  // the sum over one element is the element
    float v = i == THREADS - 1 - k ? a.in[base + i] : 0.f;
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    if (i % 32 == 0) s[i / 32] = v;
    if (!BUG) __syncthreads();
    if (i == 0) a.out[base + k] = s[0] + s[1] + s[2] + s[3];
    __syncthreads();
  }
}
PLANTED(barrier_in_reduction)
