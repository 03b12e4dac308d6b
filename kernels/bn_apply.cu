// bn_apply: batch norm of each element, alone or with an addition, a ReLU and a mask. graph::Op BnApply, BnAct.
//
//   x [g, rows, c] [, shortcut of its shape] -> y = relu?(gamma (x - mean) / sqrt(var + eps) + beta [+ shortcut])
//   [, mask: bit i % 8 of byte i / 8 is y > 0, of y before it is rounded]. mean, var: f32 [g, c]; gamma, beta: f32 [c].
// _f32, _bf16: x, shortcut and y of one dtype, 16-byte aligned, groups too; _any: any of them, any alignment.
// Bytes moved: x, shortcut, y and mask once. Not measured on hardware.
#include "bn.cuh"

struct BnApplyArgs {
  Operand x, shortcut, y;
  const float *mean, *var, *gamma, *beta;
  uint8_t *mask;
  double eps;
  BnLines lines;
  uint32_t relu, n;  // n: elements of all groups
};
static_assert(sizeof(BnApplyArgs) == 128, "cuda/src/bn.rs asserts the same");

DEVICE float bn_act(float x, float mean, float scale, float beta, float shortcut, bool relu) {
  const float y = fmaf(x - mean, scale, beta) + shortcut;
  return relu && y < 0.f ? 0.f : y;  // a NaN passes
}

struct BnConstants {
  float mean[8], scale[8], beta[8];
};

// U packs, `step` apart.
template <class T, int U>
DEVICE void bn_apply_packs(const BnApplyArgs &a, const BnConstants &k, size_t at, uint32_t step) {
  Eight<T> x[U], shortcut[U] = {};
#pragma unroll
  for (int u = 0; u < U; u++) load8(x[u], a.x, at + u * step);
  if (a.shortcut.p) {
#pragma unroll
    for (int u = 0; u < U; u++) load8(shortcut[u], a.shortcut, at + u * step);
  }
#pragma unroll
  for (int u = 0; u < U; u++) {
    float y[8];
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      y[j] = bn_act(x[u][j], k.mean[j], k.scale[j], k.beta[j], shortcut[u][j], a.relu);
      bits |= (uint32_t)(y[j] > 0.f) << j;
    }
    Store8<T>::to(a.y, at + u * step, y);
    if (a.mask) a.mask[(at + u * step) / 8] = (uint8_t)bits;
  }
}

template <class T> DEVICE void bn_apply(const BnApplyArgs &a) {
  constexpr int U = Eight<T>::BYTES == 2 ? 3 : 2;  // 48 or 64 bytes in flight a thread, as many of the shortcut
  const BnWalk w = bn_walk(a.lines);
  const size_t base = (size_t)blockIdx.z * a.lines.group;
  if (w.first >= w.end) return;
  BnConstants k;
  float var[8];
  const BnChannels channel = bn_channels(a.lines, w);
  // All loads before the roots, whose branches they would wait for.
#pragma unroll
  for (int j = 0; j < 8; j++) {
    const uint32_t at = blockIdx.z * a.lines.c + channel.of[j];
    k.mean[j] = a.mean[at];
    var[j] = a.var[at];
    k.scale[j] = a.gamma[channel.of[j]];
    k.beta[j] = a.beta[channel.of[j]];
  }
#pragma unroll
  for (int j = 0; j < 8; j++) k.scale[j] *= bn_rstd(var[j], a.eps);
  uint32_t i = w.first;
  for (; i + (U - 1) * w.step < w.whole; i += U * w.step) bn_apply_packs<T, U>(a, k, base + i, w.step);
  for (; i < w.whole; i += w.step) bn_apply_packs<T, 1>(a, k, base + i, w.step);
  if (i < w.end) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (i + j >= w.end) break;
      const float shortcut = a.shortcut.p ? get(a.shortcut, base + i + j) : 0.f;
      const float y = bn_act(get(a.x, base + i + j), k.mean[j], k.scale[j], k.beta[j], shortcut, a.relu);
      set(a.y, base + i + j, y);
      bits |= (uint32_t)(y > 0.f) << j;
    }
    if (a.mask) a.mask[(base + i) / 8] = (uint8_t)bits;
  }
}
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_apply_f32(const __grid_constant__ BnApplyArgs a) {
  bn_apply<float>(a);
}
KERNEL_EXPORT(bn_apply_f32)
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_apply_bf16(const __grid_constant__ BnApplyArgs a) {
  bn_apply<bf16>(a);
}
KERNEL_EXPORT(bn_apply_bf16)

// A byte of the mask a thread: groups may meet within it. A one-dimensional grid.
extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_apply_any(const __grid_constant__ BnApplyArgs a) {
  const BnLines &l = a.lines;
  for (uint32_t byte = thread_in_grid(); byte < (a.n + 7) / 8; byte += threads_in_grid()) {
    uint32_t bits = 0;
    for (uint32_t i = 8 * byte; i < min(a.n, 8 * byte + 8); i++) {
      const uint32_t channel = i % l.c, at = i / l.group * l.c + channel;
      const float scale = a.gamma[channel] * bn_rstd(a.var[at], a.eps), shortcut = a.shortcut.p ? get(a.shortcut, i) : 0.f;
      const float y = bn_act(get(a.x, i), a.mean[at], scale, a.beta[channel], shortcut, a.relu);
      set(a.y, i, y);
      bits |= (uint32_t)(y > 0.f) << i % 8;
    }
    if (a.mask) a.mask[byte] = (uint8_t)bits;
  }
}
KERNEL_EXPORT(bn_apply_any)
