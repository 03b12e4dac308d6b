// conv_stats: moments of tiles of pixels, as convolutions leave them, become moments of runs of 64 tiles.
//
//   mean, m2 f32 [groups, tiles, k] -> f32 [groups, ceil(tiles / 64), k]; a tile has `rows` pixels, the last one what is left of `group`.
// Four threads a channel merge 16 tiles each, in order, then their results in order (Chan's formula): bn_stats_merge does the rest.
// Grid: runs x (k / 64) x groups. Bytes: 8 a tile and channel. Not measured on hardware.
#include "memory.cuh"

struct ConvStatsArgs {
  const float *mean, *m2;
  float *run_mean, *run_m2;
  uint32_t k, tiles, runs, rows, group, pad;
};
static_assert(sizeof(ConvStatsArgs) == 56, "cuda/src/conv.rs has the same");
constexpr int RUN = 64, LANES = 4, CHANNELS = 64;

DEVICE void merge(float &n, float &mean, float &m2, float more, float other_mean, float other_m2) {
  const float total = n + more, delta = other_mean - mean, share = more / total;
  mean = fmaf(delta, share, mean);
  m2 += other_m2 + delta * delta * n * share;
  n = total;
}

extern "C" __global__ void __launch_bounds__(256) conv_stats(const __grid_constant__ ConvStatsArgs a) {
  __shared__ float shared[3][LANES][CHANNELS];
  const uint32_t lane = threadIdx.x / CHANNELS, channel = blockIdx.y * CHANNELS + threadIdx.x % CHANNELS;
  const uint32_t first = blockIdx.x * RUN + lane * (RUN / LANES), end = min(first + RUN / LANES, a.tiles);
  float n = 0.f, mean = 0.f, m2 = 0.f;
  for (uint32_t t = first; t < end && channel < a.k; t++) {
    const size_t at = ((size_t)blockIdx.z * a.tiles + t) * a.k + channel;
    merge(n, mean, m2, (float)min(a.rows, a.group - t * a.rows), a.mean[at], a.m2[at]);
  }
  shared[0][lane][threadIdx.x % CHANNELS] = n;
  shared[1][lane][threadIdx.x % CHANNELS] = mean;
  shared[2][lane][threadIdx.x % CHANNELS] = m2;
  __syncthreads();
  if (lane != 0 || channel >= a.k) return;
#pragma unroll
  for (int l = 1; l < LANES; l++) {
    const float more = shared[0][l][threadIdx.x];
    if (more > 0.f) merge(n, mean, m2, more, shared[1][l][threadIdx.x], shared[2][l][threadIdx.x]);
  }
  const size_t at = ((size_t)blockIdx.z * a.runs + blockIdx.x) * a.k + channel;
  a.run_mean[at] = mean, a.run_m2[at] = m2;
}
KERNEL_EXPORT(conv_stats)
