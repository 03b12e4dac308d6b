// bn_ranks: batch norm over the ranks of a run, of what each gave to all. graph::Op BnMergeRanks, BnSumRanks.
//
//   bn_ranks_merge: mean, biased variance f32 [world, n], rows f32 [world], n = groups * channels
//     -> mean, M2 / rows, M2 / max(rows - 1, 1) over the rows of all ranks: f32 [n]; Chan's formula in rank order, in f64.
//   bn_ranks_sum: sums f32 [world, n], rows f32 [world], n = groups * 2 * channels
//     -> their sum over ranks, times count / (rows of all ranks): f32 [n]. bn_grad_apply divides by this rank's rows, `count`, and has
//     the mean over all then.
// 4-byte alignment. Every rank has the same bits: inputs and order are equal, `count` alone is the rank's own.
// Bytes moved: inputs once. Not measured on hardware.
#include "target.cuh"

struct BnRanksMergeArgs {
  const float *means, *vars, *rows;
  float *mean, *var, *unbiased;
  uint32_t n, world;
};
static_assert(sizeof(BnRanksMergeArgs) == 56, "cuda/src/bn_ranks.rs asserts the same");

struct BnRanksSumArgs {
  const float *sums, *rows;
  float *out;
  double count;
  uint32_t n, world;
};
static_assert(sizeof(BnRanksSumArgs) == 40, "cuda/src/bn_ranks.rs asserts the same");

extern "C" __global__ void __launch_bounds__(128) bn_ranks_merge(const __grid_constant__ BnRanksMergeArgs a) {
  const uint32_t at = blockIdx.x * 128 + threadIdx.x;
  if (at >= a.n) return;
  double count = 0, mean = 0, m2 = 0;
  for (uint32_t rank = 0; rank < a.world; rank++) {
    const size_t of_rank = (size_t)rank * a.n + at;
    const double rows = a.rows[rank], total = count + rows, delta = a.means[of_rank] - mean;
    mean += delta * rows / total;
    m2 += a.vars[of_rank] * rows + delta * delta * count * rows / total;
    count = total;
  }
  a.mean[at] = (float)mean;
  a.var[at] = (float)(m2 / count);
  a.unbiased[at] = (float)(m2 / (count > 2 ? count - 1 : 1.0));
}
KERNEL_EXPORT(bn_ranks_merge)

extern "C" __global__ void __launch_bounds__(128) bn_ranks_sum(const __grid_constant__ BnRanksSumArgs a) {
  const uint32_t at = blockIdx.x * 128 + threadIdx.x;
  if (at >= a.n) return;
  double sum = 0, rows = 0;
  for (uint32_t rank = 0; rank < a.world; rank++) {
    sum += a.sums[(size_t)rank * a.n + at];
    rows += a.rows[rank];
  }
  a.out[at] = (float)(sum * (a.count / rows));
}
KERNEL_EXPORT(bn_ranks_sum)
