// A tile is read before all threads have written it.
#include "planted.cuh"

template <bool BUG> DEVICE void barrier_before_read(const PlantedArgs &a) {
  __shared__ float s[THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  s[i] = a.in[base + i];
  if (!BUG) __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(barrier_before_read)
