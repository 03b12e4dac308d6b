// Adds to a static shared array that nobody has set to zero.
#include "planted.cuh"

template <bool BUG> DEVICE void uninitialised_static(const PlantedArgs &a) {
  __shared__ float s[THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  if (!BUG) s[i] = 0.f;
  s[i] += a.in[base + i];
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(uninitialised_static)
