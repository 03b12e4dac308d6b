// A static shared array that is one element short.
#include "planted.cuh"

template <bool BUG> DEVICE void bounds_static(const PlantedArgs &a) {
  __shared__ float s[THREADS - (BUG ? 1 : 0)];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  s[i] = a.in[base + i];
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(bounds_static)
