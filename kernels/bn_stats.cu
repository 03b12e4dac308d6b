// bn_stats: mean, biased and unbiased variance of each channel and group. graph::Op BnStats.
//
//   x [g, rows, c] f32 or bf16 -> mean, M2 / rows, M2 / max(rows - 1, 1): f32 [g, c]; M2 = sum (x - mean)^2.
// Partial results of the splits, mean less the first value and M2: f32 [g, splits, width]. Counts follow from the shape (bn_count).
// _f32, _bf16: x 16-byte aligned, groups too; _any: any alignment.
// Every sum of squares is about a mean of its own: a tile of a few elements of a thread by two passes over registers, tiles by
// Chan's formula, threads of a block and then splits about their common mean. All of it of x less the first value of the channel and
// group: rounded means are then as small as deviations, so that |mean| >> std costs no digits (PERFORMANCE.md 3).
// Bytes moved: x once. Not measured on hardware.
#include "bn.cuh"

struct BnStatsArgs {
  Operand x;
  float *mean, *m2;
  BnLines lines;
};
static_assert(sizeof(BnStatsArgs) == 56, "cuda/src/bn.rs asserts the same");

struct BnStatsMergeArgs {
  Operand x;  // none: the means of the parts are means
  const float *part_mean, *part_m2;
  float *mean, *var, *unbiased;
  BnLines lines;
};
static_assert(sizeof(BnStatsMergeArgs) == 80, "cuda/src/bn.rs asserts the same");

template <class T> DEVICE void bn_stats(const BnStatsArgs &a) {
  constexpr int U = 16 / Eight<T>::BYTES;  // 128 bytes in flight a thread
  __shared__ float scratch[8][BN_THREADS];
  const BnWalk w = bn_walk(a.lines);
  const size_t base = (size_t)blockIdx.z * a.lines.group;
  float origin[8], mean[8] = {}, m2[8] = {};
  const BnChannels channel = bn_channels(a.lines, w);
#pragma unroll
  for (int j = 0; j < 8; j++) origin[j] = get(a.x, base + channel.of[j]);
  uint32_t n = 0, i = w.first;
  for (; i + (U - 1) * w.step < w.whole; i += U * w.step) {
    Eight<T> x[U];
#pragma unroll
    for (int u = 0; u < U; u++) load8(x[u], a.x, base + i + u * w.step);
    n += U;
    const float share = (float)U / (float)n, weight = (float)(n - U) * share;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float d[U], sum = 0.f, square = 0.f;
#pragma unroll
      for (int u = 0; u < U; u++) sum += d[u] = x[u][j] - origin[j];
      const float tile = sum * (1.f / U), delta = tile - mean[j];
#pragma unroll
      for (int u = 0; u < U; u++) square = fmaf(d[u] - tile, d[u] - tile, square);
      mean[j] = fmaf(delta, share, mean[j]);
      m2[j] += fmaf(delta * delta, weight, square);
    }
  }
  uint32_t more = 0;  // elements of the last, short pack
  for (; i < w.end; i += w.step) {
    const uint32_t count = min(8u, w.end - i);
    if (count < 8) more = count;
    else n++;
    const float share = 1.f / (float)(count < 8 ? n + 1 : n), weight = 1.f - share;
#pragma unroll
    for (int j = 0; j < 8; j++) {
      if (j >= (int)count) break;
      const float delta = get(a.x, base + i + j) - origin[j] - mean[j];
      mean[j] = fmaf(delta, share, mean[j]);
      m2[j] = fmaf(delta * delta, weight, m2[j]);
    }
  }
  float common[8];
#pragma unroll
  for (int j = 0; j < 8; j++) common[j] = (float)(n + (j < (int)more)) * mean[j];
  sum_rows(common, w, scratch);
#pragma unroll
  for (int j = 0; j < 8; j++) {
    common[j] /= (float)max(1u, bn_count(a.lines, blockIdx.y, w.column + j));
    const float delta = mean[j] - common[j];
    m2[j] = fmaf((float)(n + (j < (int)more)) * delta, delta, m2[j]);
  }
  sum_rows(m2, w, scratch);
  if (w.row == 0 && w.column < a.lines.width) {
    const size_t at = ((size_t)blockIdx.z * a.lines.splits + blockIdx.y) * a.lines.width + w.column;
    Store8<float>::to({a.mean, FLOAT32, 0}, at, common);
    Store8<float>::to({a.m2, FLOAT32, 0}, at, m2);
  }
}
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_stats_f32(const __grid_constant__ BnStatsArgs a) {
  bn_stats<float>(a);
}
KERNEL_EXPORT(bn_stats_f32)
extern "C" __global__ void __launch_bounds__(BN_THREADS, 3) bn_stats_bf16(const __grid_constant__ BnStatsArgs a) {
  bn_stats<bf16>(a);
}
KERNEL_EXPORT(bn_stats_bf16)
extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_stats_any(const __grid_constant__ BnStatsArgs a) {
  bn_stats<Any>(a);
}
KERNEL_EXPORT(bn_stats_any)

// Grid (c / 8, g). In f64: one channel has a few hundred partial results.
extern "C" __global__ void __launch_bounds__(BN_THREADS) bn_stats_merge(const __grid_constant__ BnStatsMergeArgs a) {
  __shared__ double scratch[8][8];
  const BnLines &l = a.lines;
  const BnMerge m = bn_merge();
  const uint32_t copies = l.width / l.c, parts = m.channel < l.c ? l.splits * copies : 0;
  const size_t base = (size_t)blockIdx.y * l.splits * l.width + m.channel;
  const double n = l.group / l.c;
  double sum = 0;
  for (uint32_t k = m.lane; k < parts; k += 32) {
    // Part k is split k / copies, column channel + c (k mod copies): they follow one another.
    const uint32_t count = bn_count(l, k / copies, m.channel + k % copies * l.c);
    sum += count * (double)a.part_mean[base + (size_t)k * l.c];
  }
  const double mean = bn_merge_sum(sum, scratch) / n;
  double m2 = 0;
  for (uint32_t k = m.lane; k < parts; k += 32) {
    const uint32_t count = bn_count(l, k / copies, m.channel + k % copies * l.c);
    const double delta = a.part_mean[base + (size_t)k * l.c] - mean;
    m2 += a.part_m2[base + (size_t)k * l.c] + count * delta * delta;
  }
  m2 = bn_merge_sum(m2, scratch);
  if (m.lane == 0 && m.channel < l.c) {
    const size_t at = (size_t)blockIdx.y * l.c + m.channel;
    const float origin = a.x.p ? get(a.x, (size_t)blockIdx.y * l.group + m.channel) : 0.f;
    a.mean[at] = (float)(origin + mean);
    a.var[at] = (float)(m2 / n);
    a.unbiased[at] = (float)(m2 / (n > 2 ? n - 1 : 1.0));
  }
}
KERNEL_EXPORT(bn_stats_merge)
