// cp.async: the newest group is read without a wait for it.
#include "planted.cuh"

template <bool BUG> DEVICE void copy_wait(const PlantedArgs &a) {
  __shared__ float s[2 * THREADS];
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  cp_async_4(s + THREADS + i, a.in + base + i, true);
  cp_async_commit();
  cp_async_4(s + i, a.in + base + i, true);
  cp_async_commit();
  cp_async_wait<BUG ? 1 : 0>();
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
  cp_async_wait<0>();
}
PLANTED(copy_wait)
