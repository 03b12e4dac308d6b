// rank_correlation: Pearson correlation of two sets of predictions. graph::Op Correlation and CorrelationGrad, METHODS.md chapter 7.5.
//
//   ρ = ac·bc / (|ac||bc| + 1e-8) along a line, ac and bc centred along it; a = softmax(z), b = softmax(t) come from loss_softmax.
//   value = factor Σ_lines (1 − ρ) / divisor;  dz = a (da − Σ a da), da = −weight factor / divisor (x ac + y bc)
// Lines are rows, or columns where `columns`. a, b: f32 [rows, classes]; lines: [rows or classes]; value f32 [1]; dz f32
// [rows, classes]. Any alignment. Sums are f64, for 1 − ρ of predictions that agree.
// Bytes moved: a and b twice for the lines, twice for the gradient. Not measured on hardware.
#include "reduce.cuh"
#include "step.cuh"

// Means of a and b, dρ/dac = x ac + y bc, and 1 − ρ.
struct CorrelationLine {
  double mean_a, mean_b, x, y, distance;
};
struct CorrelationArgs {
  const float *a, *b;
  CorrelationLine *lines;
  float *value, *dz;
  const Scalars *scalars;
  Divisor divisor;
  Weight weight;
  double factor;
  uint32_t rows, classes, columns, lines_n;
};
static_assert(sizeof(CorrelationLine) == 40 && sizeof(CorrelationArgs) == 112, "cuda/src/rank.rs asserts the same");
constexpr double GUARD = 1e-8;

DEVICE CorrelationLine line_of(double mean_a, double mean_b, double aa, double bb, double ab) {
  const double d = sqrt(aa) * sqrt(bb) + GUARD;
  // A line of equal numbers has no direction: x is zero there.
  return {mean_a, mean_b, aa > 0.0 ? -ab / (d * d) * sqrt(bb / aa) : 0.0, 1.0 / d, 1.0 - ab / d};
}

// A block a row.
template <int THREADS> DEVICE void correlation_rows(const CorrelationArgs &s) {
  __shared__ double scratch[32];
  const float *a = s.a + (size_t)blockIdx.x * s.classes, *b = s.b + (size_t)blockIdx.x * s.classes;
  double mean_a = 0.0, mean_b = 0.0, aa = 0.0, bb = 0.0, ab = 0.0;
  for (uint32_t j = threadIdx.x; j < s.classes; j += THREADS) mean_a += a[j], mean_b += b[j];
  mean_a = block_sum<THREADS>(mean_a, scratch) / s.classes;
  mean_b = block_sum<THREADS>(mean_b, scratch) / s.classes;
  for (uint32_t j = threadIdx.x; j < s.classes; j += THREADS) {
    const double x = a[j] - mean_a, y = b[j] - mean_b;
    aa += x * x, bb += y * y, ab += x * y;
  }
  aa = block_sum<THREADS>(aa, scratch);
  bb = block_sum<THREADS>(bb, scratch);
  ab = block_sum<THREADS>(ab, scratch);
  if (threadIdx.x == 0) s.lines[blockIdx.x] = line_of(mean_a, mean_b, aa, bb, ab);
}
extern "C" __global__ void __launch_bounds__(32) rank_correlation_rows_warp(const __grid_constant__ CorrelationArgs s) { correlation_rows<32>(s); }
KERNEL_EXPORT(rank_correlation_rows_warp)
extern "C" __global__ void __launch_bounds__(256) rank_correlation_rows_block(const __grid_constant__ CorrelationArgs s) { correlation_rows<256>(s); }
KERNEL_EXPORT(rank_correlation_rows_block)

// The sum over the 8 warps of a block, lane by lane.
DEVICE double sum_of_warps(double v, double (&scratch)[8][32]) {
  __syncthreads();  // readers of the call before have read
  scratch[threadIdx.x / 32][threadIdx.x % 32] = v;
  __syncthreads();
  v = 0.0;
#pragma unroll
  for (int w = 0; w < 8; w++) v += scratch[w][threadIdx.x % 32];
  return v;
}

// A block 32 columns, a lane a column, every eighth row a warp.
extern "C" __global__ void __launch_bounds__(256) rank_correlation_columns(const __grid_constant__ CorrelationArgs s) {
  __shared__ double scratch[8][32];
  const uint32_t j = blockIdx.x * 32 + threadIdx.x % 32, first = j < s.classes ? threadIdx.x / 32 : s.rows;
  double mean_a = 0.0, mean_b = 0.0, aa = 0.0, bb = 0.0, ab = 0.0;
  for (uint32_t r = first; r < s.rows; r += 8) mean_a += s.a[(size_t)r * s.classes + j], mean_b += s.b[(size_t)r * s.classes + j];
  mean_a = sum_of_warps(mean_a, scratch) / s.rows;
  mean_b = sum_of_warps(mean_b, scratch) / s.rows;
  for (uint32_t r = first; r < s.rows; r += 8) {
    const double x = s.a[(size_t)r * s.classes + j] - mean_a, y = s.b[(size_t)r * s.classes + j] - mean_b;
    aa += x * x, bb += y * y, ab += x * y;
  }
  aa = sum_of_warps(aa, scratch);
  bb = sum_of_warps(bb, scratch);
  ab = sum_of_warps(ab, scratch);
  if (threadIdx.x < 32 && j < s.classes) s.lines[j] = line_of(mean_a, mean_b, aa, bb, ab);
}
KERNEL_EXPORT(rank_correlation_columns)

// One block.
extern "C" __global__ void __launch_bounds__(256) rank_correlation_value(const __grid_constant__ CorrelationArgs s) {
  __shared__ double scratch[32];
  double sum = 0.0;
  for (uint32_t l = threadIdx.x; l < s.lines_n; l += 256) sum += s.lines[l].distance;
  sum = block_sum<256>(sum, scratch);
  if (threadIdx.x == 0) *s.value = (float)(s.factor * sum / value(s.divisor, s.scalars));
}
KERNEL_EXPORT(rank_correlation_value)

// A block a row.
template <int THREADS> DEVICE void correlation_grad(const CorrelationArgs &s) {
  __shared__ double scratch[32];
  const size_t row = (size_t)blockIdx.x * s.classes;
  const double factor = -s.factor * value(s.weight, s.scalars) / value(s.divisor, s.scalars);
  const auto da = [&](uint32_t j) {
    const CorrelationLine &line = s.lines[s.columns ? j : blockIdx.x];
    return factor * (line.x * (s.a[row + j] - line.mean_a) + line.y * (s.b[row + j] - line.mean_b));
  };
  double mean = 0.0;
  for (uint32_t j = threadIdx.x; j < s.classes; j += THREADS) mean += s.a[row + j] * da(j);
  mean = block_sum<THREADS>(mean, scratch);
  for (uint32_t j = threadIdx.x; j < s.classes; j += THREADS) s.dz[row + j] = (float)(s.a[row + j] * (da(j) - mean));
}
extern "C" __global__ void __launch_bounds__(32) rank_correlation_grad_warp(const __grid_constant__ CorrelationArgs s) { correlation_grad<32>(s); }
KERNEL_EXPORT(rank_correlation_grad_warp)
extern "C" __global__ void __launch_bounds__(256) rank_correlation_grad_block(const __grid_constant__ CorrelationArgs s) { correlation_grad<256>(s); }
KERNEL_EXPORT(rank_correlation_grad_block)
