// One lane does not take part in a shuffle that names it.
#include "planted.cuh"

template <bool BUG> DEVICE void lane_missing(const PlantedArgs &a) {
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  float v = a.in[base + (THREADS - 32 - i / 32 * 32) + i % 32];
  if (!BUG || i != 37) v = __shfl_xor_sync(~0u, v, 31);
  a.out[base + i] = v;
}
PLANTED(lane_missing)
