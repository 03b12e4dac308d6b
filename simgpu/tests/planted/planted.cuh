// Planted bugs: each file has one kernel with a mistake, NAME_bug, and its correct twin, NAME_good. All do the same work:
//   out[128 b + i] = in[128 b + 127 - i], 2 blocks of 128 threads, 512 bytes of dynamic shared memory.
#pragma once
#include "ptx.cuh"

constexpr unsigned THREADS = 128;
struct PlantedArgs {
  const float *in;  // f32[256], no byte more
  float *out;       // f32[256], no byte more
};

#define PLANTED(name)                                                                                             \
  extern "C" __global__ void name##_bug(const __grid_constant__ PlantedArgs a) { name<true>(a); }  \
  extern "C" __global__ void name##_good(const __grid_constant__ PlantedArgs a) { name<false>(a); } \
  KERNEL_EXPORT(name##_bug)                                                                                       \
  KERNEL_EXPORT(name##_good)
