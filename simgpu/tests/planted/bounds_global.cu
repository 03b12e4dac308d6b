// The last thread reads one element past the end of global memory.
#include "planted.cuh"

template <bool BUG> DEVICE void bounds_global(const PlantedArgs &a) {
  const unsigned i = threadIdx.x, base = blockIdx.x * THREADS;
  const float next = a.in[BUG || base + i + 1 < 2 * THREADS ? base + i + 1 : 0];
  a.out[base + i] = a.in[base + THREADS - 1 - i] + (next == 1e30f ? 1.f : 0.f);
}
PLANTED(bounds_global)
