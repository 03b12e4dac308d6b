// bn_grad_apply: batch norm's gradient of each element. graph::Op BnGradApply.
//
//   dy, x [g, rows, c] [, mask: a bit per element, where dy counts]; mean, var: f32 [g, c]; gamma: f32 [c]; sums: f32 [g, 2, c]
//   -> dx = gamma rstd (dy - sum dy / rows - xhat (sum dy xhat) / rows), xhat = (x - mean) rstd, statistics of this batch;
//      dx = gamma rstd dy, running statistics: then x, mean and sums are not read
//   [, dshortcut = dy under the mask].
// _f32, _bf16: dy, x, dx and dshortcut of one dtype, 16-byte aligned, groups too; _any: any of them, any alignment.
// Bytes moved: dy, x, mask, dx and dshortcut once. Not measured on hardware.
#include "bn.cuh"

struct BnGradApplyArgs {
  Operand dy, x, dx, dshortcut;
  const float *mean, *var, *gamma, *sums;
  const uint8_t *mask;
  double eps;
  BnLines lines;
  uint32_t batch, pad;  // batch: statistics are of this batch
};
static_assert(sizeof(BnGradApplyArgs) == 144, "cuda/src/bn.rs asserts the same");

struct BnGradConstants {
  float mean[8], scale[8], dy[8], dy_x[8];  // dy, dy_x: means of dy and of dy xhat, times rstd
};
DEVICE float bn_grad(float dy, float x, const BnGradConstants &k, int j) {
  return k.scale[j] * fmaf(-(x - k.mean[j]), k.dy_x[j], dy - k.dy[j]);
}

template <class T, int U>
DEVICE void bn_grad_apply_packs(const BnGradApplyArgs &a, const BnGradConstants &k, size_t at, uint32_t step) {
  Eight<T> dy[U], x[U] = {};
  uint32_t bits[U];
#pragma unroll
  for (int u = 0; u < U; u++) load8(dy[u], a.dy, at + u * step);
  if (a.batch) {
#pragma unroll
    for (int u = 0; u < U; u++) load8(x[u], a.x, at + u * step);
  }
#pragma unroll
  for (int u = 0; u < U; u++) bits[u] = Mask8<T>::at(a.mask, at + u * step);
#pragma unroll
  for (int u = 0; u < U; u++) {
    float g[8], dx[8];
#pragma unroll
    for (int j = 0; j < 8; j++) {
      g[j] = bits[u] >> j & 1 ? dy[u][j] : 0.f;
      dx[j] = bn_grad(g[j], x[u][j], k, j);
    }
    Store8<T>::to(a.dx, at + u * step, dx);
    if (a.dshortcut.p) Store8<T>::to(a.dshortcut, at + u * step, g);
  }
}

template <class T> DEVICE void bn_grad_apply(const BnGradApplyArgs &a) {
  constexpr int U = Eight<T>::BYTES == 2 ? 2 : 1;  // 64 bytes in flight a thread; more would not fit its registers
  const BnWalk w = bn_walk(a.lines);
  if (w.first >= w.end) return;
  const uint32_t c = a.lines.c, g = blockIdx.z;
  const size_t base = (size_t)g * a.lines.group;
  const float n = (float)(a.lines.group / c);
  BnGradConstants k = {};  // running statistics: dx = scale dy
  float var[8];
  const BnChannels channel = bn_channels(a.lines, w);
  // All loads before the roots, whose branches they would wait for.
#pragma unroll
  for (int j = 0; j < 8; j++) {
    var[j] = a.var[g * c + channel.of[j]];
    k.scale[j] = a.gamma[channel.of[j]];
  }
  if (a.batch) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      k.mean[j] = a.mean[g * c + channel.of[j]];
      k.dy[j] = a.sums[2 * g * c + channel.of[j]];
      k.dy_x[j] = a.sums[(2 * g + 1) * c + channel.of[j]];
    }
  }
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const float rstd = bn_rstd(var[j], a.eps);
    k.scale[j] *= rstd;
    k.dy[j] /= n;
    k.dy_x[j] = k.dy_x[j] / n * rstd;
  }
  uint32_t i = w.first;
  for (; i + (U - 1) * w.step < w.whole; i += U * w.step) bn_grad_apply_packs<T, U>(a, k, base + i, w.step);
  for (; i < w.whole; i += w.step) bn_grad_apply_packs<T, 1>(a, k, base + i, w.step);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    if (i + j >= w.end) break;
    const float dy = mask_bit(a.mask, base + i + j) ? get(a.dy, base + i + j) : 0.f;
    set(a.dx, base + i + j, bn_grad(dy, a.batch ? get(a.x, base + i + j) : 0.f, k, j));
    if (a.dshortcut.p) set(a.dshortcut, base + i + j, dy);
  }
}
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_grad_apply_f32(const __grid_constant__ BnGradApplyArgs a) {
  bn_grad_apply<float>(a);
}
KERNEL_EXPORT(bn_grad_apply_f32)
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_grad_apply_bf16(const __grid_constant__ BnGradApplyArgs a) {
  bn_grad_apply<bf16>(a);
}
KERNEL_EXPORT(bn_grad_apply_bf16)
extern "C" __global__ void __launch_bounds__(BN_THREADS, 2) bn_grad_apply_any(const __grid_constant__ BnGradApplyArgs a) {
  bn_grad_apply<Any>(a);
}
KERNEL_EXPORT(bn_grad_apply_any)
