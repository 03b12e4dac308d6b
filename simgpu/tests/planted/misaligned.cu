// cp.async of 16 bytes to an address that is not 16-byte aligned.
#include "planted.cuh"

template <bool BUG> DEVICE void misaligned(const PlantedArgs &a) {
  DYN_SHARED(float, s);
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  if (i < THREADS / 4 - 1) cp_async_16(s + 4 * i + (BUG ? 1 : 0), a.in + base + 4 * i, true);
  cp_async_commit();
  cp_async_wait<0>();
  if (i >= THREADS - 4) s[i] = a.in[base + i];
  __syncthreads();
  a.out[base + i] = s[THREADS - 1 - i];
}
PLANTED(misaligned)
