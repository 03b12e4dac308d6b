// Threads without work leave before a barrier.
#include "planted.cuh"

template <bool BUG> DEVICE void barrier_divergence(const PlantedArgs &a) {
  __shared__ float s[THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  s[i] = a.in[base + i];
  if (!BUG || i < 100) __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(barrier_divergence)
