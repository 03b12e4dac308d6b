// bn_grad_sums: the two sums of batch norm's backward pass, of each channel and group. graph::Op BnGradSums.
//
//   dy, x [g, rows, c] f32 or bf16 [, mask: a bit per element, where dy counts]; mean, var: f32 [g, c]
//   -> sums f32 [g, 2, c]: sum dy, sum dy (x - mean) rstd; dgamma, dbeta f32 [c]: the latter and the former over all groups.
// Partial sums of the splits, without rstd: f32 [g, splits, width] each.
// _f32, _bf16: dy and x of one dtype, 16-byte aligned, groups too; _any: any of them, any alignment.
// Bytes moved: dy, x and mask once. Not measured on hardware.
#include "bn.cuh"

struct BnGradSumsArgs {
  Operand dy, x;
  const float *mean;
  const uint8_t *mask;
  float *dy_sum, *dy_x_sum;
  BnLines lines;
};
static_assert(sizeof(BnGradSumsArgs) == 88, "cuda/src/bn.rs asserts the same");

struct BnGradSumsMergeArgs {
  const float *dy_sum, *dy_x_sum, *var;
  float *dgamma, *dbeta, *sums;
  double eps;
  BnLines lines;
  uint32_t groups, pad;
};
static_assert(sizeof(BnGradSumsMergeArgs) == 88, "cuda/src/bn.rs asserts the same");

struct BnSums {
  float mean[8], dy[8], dy_x[8];
};

template <class T, int U> DEVICE void bn_grad_sums_packs(const BnGradSumsArgs &a, BnSums &s, size_t at, uint32_t step) {
  Eight<T> dy[U], x[U];
  uint32_t bits[U];
#pragma unroll
  for (int u = 0; u < U; u++) load8(dy[u], a.dy, at + u * step);
#pragma unroll
  for (int u = 0; u < U; u++) load8(x[u], a.x, at + u * step);
#pragma unroll
  for (int u = 0; u < U; u++) bits[u] = Mask8<T>::at(a.mask, at + u * step);
#pragma unroll
  for (int u = 0; u < U; u++) {
#pragma unroll
    for (int j = 0; j < 8; j++) {
      const float g = bits[u] >> j & 1 ? dy[u][j] : 0.f;
      s.dy[j] += g;
      s.dy_x[j] = fmaf(g, x[u][j] - s.mean[j], s.dy_x[j]);
    }
  }
}

template <class T> DEVICE void bn_grad_sums(const BnGradSumsArgs &a) {
  constexpr int U = Eight<T>::BYTES == 2 ? 3 : 2;  // 96 or 128 bytes in flight a thread
  __shared__ float scratch[8][BN_THREADS];
  const BnWalk w = bn_walk(a.lines);
  const size_t base = (size_t)blockIdx.z * a.lines.group;
  BnSums s = {};
  const BnChannels channel = bn_channels(a.lines, w);
#pragma unroll
  for (int j = 0; j < 8; j++) s.mean[j] = a.mean[blockIdx.z * a.lines.c + channel.of[j]];
  uint32_t i = w.first;
  for (; i + (U - 1) * w.step < w.whole; i += U * w.step) bn_grad_sums_packs<T, U>(a, s, base + i, w.step);
  for (; i < w.whole; i += w.step) bn_grad_sums_packs<T, 1>(a, s, base + i, w.step);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    if (i + j >= w.end) break;
    const float g = mask_bit(a.mask, base + i + j) ? get(a.dy, base + i + j) : 0.f;
    s.dy[j] += g;
    s.dy_x[j] = fmaf(g, get(a.x, base + i + j) - s.mean[j], s.dy_x[j]);
  }
  sum_rows(s.dy, w, scratch);
  sum_rows(s.dy_x, w, scratch);
  if (w.row == 0 && w.column < a.lines.width) {
    const size_t at = ((size_t)blockIdx.z * a.lines.splits + blockIdx.y) * a.lines.width + w.column;
    Store8<float>::to({a.dy_sum, FLOAT32, 0}, at, s.dy);
    Store8<float>::to({a.dy_x_sum, FLOAT32, 0}, at, s.dy_x);
  }
}
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_grad_sums_f32(const __grid_constant__ BnGradSumsArgs a) {
  bn_grad_sums<float>(a);
}
KERNEL_EXPORT(bn_grad_sums_f32)
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_grad_sums_bf16(const __grid_constant__ BnGradSumsArgs a) {
  bn_grad_sums<bf16>(a);
}
KERNEL_EXPORT(bn_grad_sums_bf16)
extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_grad_sums_any(const __grid_constant__ BnGradSumsArgs a) {
  bn_grad_sums<Any>(a);
}
KERNEL_EXPORT(bn_grad_sums_any)

// Grid (c / 8); groups in order.
extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_grad_sums_merge(const __grid_constant__ BnGradSumsMergeArgs a) {
  __shared__ double scratch[8][8];
  const BnLines &l = a.lines;
  const BnMerge m = bn_merge();
  const uint32_t copies = l.width / l.c, parts = m.channel < l.c ? l.splits * copies : 0;
  double dgamma = 0, dbeta = 0;
  for (uint32_t g = 0; g < a.groups; g++) {
    const size_t base = (size_t)g * l.splits * l.width + m.channel;
    double dy = 0, dy_x = 0;
    for (uint32_t k = m.lane; k < parts; k += 32) {  // as bn_stats_merge; parts without elements are zero
      dy += a.dy_sum[base + (size_t)k * l.c];
      dy_x += a.dy_x_sum[base + (size_t)k * l.c];
    }
    dy = bn_merge_sum(dy, scratch);
    dy_x = bn_merge_sum(dy_x, scratch);
    if (m.lane == 0 && m.channel < l.c) {
      dy_x *= 1.0 / sqrt((double)a.var[(size_t)g * l.c + m.channel] + a.eps);
      a.sums[((size_t)g * 2) * l.c + m.channel] = (float)dy;
      a.sums[((size_t)g * 2 + 1) * l.c + m.channel] = (float)dy_x;
      dbeta += dy;
      dgamma += dy_x;
    }
  }
  if (m.lane == 0 && m.channel < l.c) {
    a.dgamma[m.channel] = (float)dgamma;
    a.dbeta[m.channel] = (float)dbeta;
  }
}
KERNEL_EXPORT(bn_grad_sums_merge)
