// bn_fold: a batch norm with running statistics becomes part of the convolution before it, once after loading. graph::Op FoldBn.
//
//   w [k, filter], each f32 or bf16; mean, var, gamma, beta: f32 [k] -> w s, beta - mean s: bias f32 [k]; s = gamma / sqrt(var + eps).
// Bytes moved: w twice. Not measured on hardware.
#include "bn.cuh"

struct BnFoldArgs {
  Operand w, y;
  const float *mean, *var, *gamma, *beta;
  float *bias;
  double eps;
  Divide filter;
  uint32_t n, k, pad;
};
static_assert(sizeof(BnFoldArgs) == 104, "cuda/src/bn.rs asserts the same");

extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_fold(const __grid_constant__ BnFoldArgs a) {
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t k = i / a.filter;
    set(a.y, i, get(a.w, i) * (a.gamma[k] * bn_rstd(a.var[k], a.eps)));
  }
  for (uint32_t k = thread_in_grid(); k < a.k; k += threads_in_grid()) {
    a.bias[k] = fmaf(-a.mean[k], a.gamma[k] * bn_rstd(a.var[k], a.eps), a.beta[k]);
  }
}
KERNEL_EXPORT(bn_fold)
