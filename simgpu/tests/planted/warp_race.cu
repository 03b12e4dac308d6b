// Warps count in shared memory without an order between them; the sum comes out right where they take turns.
#include "planted.cuh"

template <bool BUG> DEVICE void warp_race(const PlantedArgs &a) {
  __shared__ int count;
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  if (i == 0) count = 0;
  __syncthreads();
  if (i % 32 == 0) {
    if (BUG) count += 1;
    else atomicAdd(&count, 1);
  }
  __syncthreads();
  a.out[base + i] = count == 4 ? a.in[base + THREADS - 1 - i] : -1.f;
}
PLANTED(warp_race)
