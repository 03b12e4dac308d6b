// conv_wgrad_sum: dw[i] = sum over splits, in their order, of partial[split][i]. f32, n elements, 4-byte aligned.
// (splits + 1) * 4 bytes an element, mostly from L2. Not measured on hardware.
#include "memory.cuh"

struct WgradSumArgs {
  const float *partial;
  float *dw;
  uint32_t n, splits;
};
static_assert(sizeof(WgradSumArgs) == 24, "cuda/src/conv.rs has the same");

extern "C" __global__ void __launch_bounds__(256) conv_wgrad_sum(const __grid_constant__ WgradSumArgs a) {
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    float sum = a.partial[i];
    for (uint32_t s = 1; s < a.splits; s++) sum += a.partial[(size_t)s * a.n + i];
    a.dw[i] = sum;
  }
}
KERNEL_EXPORT(conv_wgrad_sum)
