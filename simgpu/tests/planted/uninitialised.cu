// Adds to shared memory that nobody has set to zero.
#include "planted.cuh"

template <bool BUG> DEVICE void uninitialised(const PlantedArgs &a) {
  DYN_SHARED(float, s);
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  if (!BUG) s[i] = 0.f;
  s[i] += a.in[base + i];
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(uninitialised)
