// The next tile is written before all threads have read this one.
#include "planted.cuh"

template <bool BUG> DEVICE void barrier_before_write(const PlantedArgs &a) {
  __shared__ float s[THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  float sum = 0.f;
  for (int tile = 0; tile < 3; tile++) {
    s[i] = a.in[base + i] * (float)(tile == 1);
    __syncthreads();
    sum += s[THREADS - 1 - i];
    if (!BUG) __syncthreads();
  }
  a.out[base + i] = sum;
}
PLANTED(barrier_before_write)
