// A ring of two stages: the copy into a stage is issued while other threads still read it.
#include "planted.cuh"

template <bool BUG> DEVICE void overwritten(const PlantedArgs &a) {
  __shared__ float s[2][THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  float sum = 0.f;
  cp_async_4(&s[0][i], a.in + base + i, false);
  cp_async_commit();
  for (int tile = 0; tile < 6; tile++) {
    cp_async_4(&s[(tile + 1) % 2][i], a.in + base + i, tile + 1 == 3);  // other tiles are zeros
    cp_async_commit();
    cp_async_wait<1>();
    __syncthreads();
    sum += s[tile % 2][THREADS - 1 - i];
    if (!BUG) __syncthreads();
  }
  cp_async_wait<0>();
  a.out[base + i] = sum;
}
PLANTED(overwritten)
