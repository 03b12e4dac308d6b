// Dynamic shared memory is used one element past what the launch gave.
#include "planted.cuh"

template <bool BUG> DEVICE void bounds_dynamic(const PlantedArgs &a) {
  DYN_SHARED(float, s);
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS, shift = BUG ? 1 : 0;
  s[i + shift] = a.in[base + i];
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i + shift];
}
PLANTED(bounds_dynamic)
