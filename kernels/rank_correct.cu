// rank_correct: rows whose label has the largest logit, and is among the k largest. graph::Op Correct.
//
// logits f32 [rows, classes]; label i32 [rows], < classes, negative: the row is not counted; rank u32 [rows]; counts f32 [2].
// Of equal logits the lower class comes first; a NaN comes before everything, so its row is wrong. Any alignment.
// Bytes moved: the logits once. Not measured on hardware.
#include "reduce.cuh"

struct CorrectArgs {
  const float *logits;
  const int32_t *label;
  uint32_t *rank;
  float *counts;
  uint32_t rows, classes, k, pad;
};
static_assert(sizeof(CorrectArgs) == 48, "cuda/src/rank.rs asserts the same");
constexpr uint32_t NOT_COUNTED = ~0u;

// A warp a row: classes before the label.
extern "C" __global__ void __launch_bounds__(256) rank_correct_rows(const __grid_constant__ CorrectArgs a) {
  const uint32_t r = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (r >= a.rows) return;
  const float *z = a.logits + (size_t)r * a.classes;
  const int label = a.label[r];
  uint32_t before = 0;
  if (label >= 0) {
    const float own = z[label];
    for (uint32_t j = lane; j < a.classes; j += 32) {
      const float v = z[j];
      before += v < own ? 0 : v == own ? j < (uint32_t)label : 1;
    }
  }
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) before += __shfl_xor_sync(0xffffffffu, before, d);
  if (lane == 0) a.rank[r] = label < 0 ? NOT_COUNTED : before;
}
KERNEL_EXPORT(rank_correct_rows)

// One block. Counts are whole numbers, so no order matters.
extern "C" __global__ void __launch_bounds__(256) rank_correct_counts(const __grid_constant__ CorrectArgs a) {
  __shared__ double scratch[32];
  double first = 0.0, among = 0.0;
  for (uint32_t r = threadIdx.x; r < a.rows; r += 256) {
    const uint32_t rank = a.rank[r];
    first += rank == 0;
    among += rank < a.k;  // NOT_COUNTED is not
  }
  first = block_sum<256>(first, scratch);
  among = block_sum<256>(among, scratch);
  if (threadIdx.x == 0) a.counts[0] = (float)first, a.counts[1] = (float)among;
}
KERNEL_EXPORT(rank_correct_counts)
