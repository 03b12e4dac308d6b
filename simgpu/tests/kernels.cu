// Kernels of the stand-in's own tests.
#include "ptx.cuh"

struct TestArgs {
  const float *from;
  float *to;
  unsigned n;
  float value;
};

extern "C" __global__ void test_add(const __grid_constant__ TestArgs a) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < a.n) a.to[i] = (a.from ? a.from[i] : 0.f) + a.value;
}
KERNEL_EXPORT(test_add)

// Half of the block waits for the other for ever.
extern "C" __global__ void test_deadlock(const __grid_constant__ TestArgs) {
  if (threadIdx.x < blockDim.x / 2) __syncthreads();
}
KERNEL_EXPORT(test_deadlock)

// What shared memory holds before anybody writes it.
extern "C" __global__ void test_shared(const __grid_constant__ TestArgs a) {
  DYN_SHARED(float, s);
  if (threadIdx.x < a.n) a.to[threadIdx.x] = s[threadIdx.x];
}
KERNEL_EXPORT(test_shared)
