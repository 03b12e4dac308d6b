// loss_softmax: rows of probabilities. graph::Op Softmax, and the first step of Correlation and NeighbourTargets.
//
//   y[r][j] = scale exp((x[r][j] − max)/tau) / Σ
// x: f32 [rows, classes], y: f32 rows `stride` apart; any alignment. A row with a NaN becomes NaN.
// Bytes moved: each once; the two further passes over a row are served by L1 or L2. Not measured on hardware.
#include "softmax.cuh"

struct SoftmaxArgs {
  const float *x;
  float *y;
  uint32_t classes, stride;
  float tau, scale;
};
static_assert(sizeof(SoftmaxArgs) == 32, "cuda/src/loss.rs asserts the same");

// A block a row.
template <int THREADS> DEVICE void softmax_row(const SoftmaxArgs &a) {
  __shared__ float scratch[32];
  const float *x = a.x + (size_t)blockIdx.x * a.classes;
  float *y = a.y + (size_t)blockIdx.x * a.stride;
  const SoftmaxSums s = softmax_sums<THREADS>(x, a.classes, a.tau, -1, scratch);
  for (uint32_t j = threadIdx.x; j < a.classes; j += THREADS) y[j] = a.scale * (expf((x[j] - s.max) / a.tau) / s.sum);
}
extern "C" __global__ void __launch_bounds__(32) loss_softmax_warp(const __grid_constant__ SoftmaxArgs a) { softmax_row<32>(a); }
KERNEL_EXPORT(loss_softmax_warp)
extern "C" __global__ void __launch_bounds__(256) loss_softmax_block(const __grid_constant__ SoftmaxArgs a) { softmax_row<256>(a); }
KERNEL_EXPORT(loss_softmax_block)
