// matmul_columns: y [rows,c] = x [rows,c] + bias [c], and sums [c] = sum over rows of x: a bias and its gradient.
// graph::Op AddBias and ColumnSum.
//
// x, y: f32 or bf16; bias, sums: f32. Kernels with a width (8 bf16, 4 f32) want 16-byte aligned addresses and c a multiple of it; those
// named `any` take all. Fewer than 2^31 elements for AddBias.
// Sums: a block adds `rows_per_block` rows of 64 columns in f32 and stores [slices][c]; where there is more than one slice,
// matmul_columns_finish adds them. The order depends on the launch alone.
// Bytes moved: x once, y once. Not measured on hardware.
#include "memory.cuh"

struct BiasArgs {
  const void *x;
  const float *bias;
  void *y;
  Divide packs_per_row;
  uint32_t packs;
};
static_assert(sizeof(BiasArgs) == 40, "cuda/src/matmul.rs asserts the same");

template <class T, int V> struct alignas(V * sizeof(T)) Group {
  T v[V];
};

// A pack of V elements a thread.
template <class T, int V> DEVICE void add_bias(const BiasArgs &a) {
  for (uint32_t i = thread_in_grid(); i < a.packs; i += threads_in_grid()) {
    const float *bias = a.bias + (i - i / a.packs_per_row * a.packs_per_row.divisor) * V;
    auto x = ((const Group<T, V> *)a.x)[i];
#pragma unroll
    for (int l = 0; l < V; l++) x.v[l] = from_f32<T>(to_f32(x.v[l]) + bias[l]);
    ((Group<T, V> *)a.y)[i] = x;
  }
}
extern "C" __global__ void __launch_bounds__(256) matmul_columns_bias_f32(const __grid_constant__ BiasArgs a) { add_bias<float, 4>(a); }
KERNEL_EXPORT(matmul_columns_bias_f32)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_bias_bf16(const __grid_constant__ BiasArgs a) { add_bias<bf16, 8>(a); }
KERNEL_EXPORT(matmul_columns_bias_bf16)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_bias_any_f32(const __grid_constant__ BiasArgs a) { add_bias<float, 1>(a); }
KERNEL_EXPORT(matmul_columns_bias_any_f32)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_bias_any_bf16(const __grid_constant__ BiasArgs a) { add_bias<bf16, 1>(a); }
KERNEL_EXPORT(matmul_columns_bias_any_bf16)

struct ColumnSumArgs {
  const void *x;
  float *sums;
  uint32_t rows, c, rows_per_block, pad;
};
static_assert(sizeof(ColumnSumArgs) == 32, "cuda/src/matmul.rs asserts the same");

// Grid (tiles of 64 columns, slices of rows); V columns a thread.
template <class T, int V> DEVICE void column_sum(const ColumnSumArgs &a) {
  constexpr uint32_t COLUMNS = 64, ACROSS = COLUMNS / V, DOWN = 256 / ACROSS;
  __shared__ float partial[DOWN][COLUMNS];
  const uint32_t across = threadIdx.x % ACROSS * V, down = threadIdx.x / ACROSS, first = blockIdx.x * COLUMNS;
  const uint32_t begin = blockIdx.y * a.rows_per_block, end = min(a.rows, begin + a.rows_per_block);
  float sum[V] = {};
  if (first + across < a.c) {
    const T *x = (const T *)a.x + first + across;
#pragma unroll 4
    for (uint32_t row = begin + down; row < end; row += DOWN) {
      const auto v = *(const Group<T, V> *)(x + (size_t)row * a.c);
#pragma unroll
      for (int l = 0; l < V; l++) sum[l] += to_f32(v.v[l]);
    }
  }
#pragma unroll
  for (int l = 0; l < V; l++) partial[down][across + l] = sum[l];
  __syncthreads();
  const uint32_t column = first + threadIdx.x;
  if (threadIdx.x >= COLUMNS || column >= a.c) return;
  float total = 0.f;
  for (uint32_t d = 0; d < DOWN; d++) total += partial[d][threadIdx.x];
  a.sums[(size_t)blockIdx.y * a.c + column] = total;
}
extern "C" __global__ void __launch_bounds__(256) matmul_columns_sum_f32(const __grid_constant__ ColumnSumArgs a) { column_sum<float, 4>(a); }
KERNEL_EXPORT(matmul_columns_sum_f32)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_sum_bf16(const __grid_constant__ ColumnSumArgs a) { column_sum<bf16, 8>(a); }
KERNEL_EXPORT(matmul_columns_sum_bf16)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_sum_any_f32(const __grid_constant__ ColumnSumArgs a) { column_sum<float, 1>(a); }
KERNEL_EXPORT(matmul_columns_sum_any_f32)
extern "C" __global__ void __launch_bounds__(256) matmul_columns_sum_any_bf16(const __grid_constant__ ColumnSumArgs a) { column_sum<bf16, 1>(a); }
KERNEL_EXPORT(matmul_columns_sum_any_bf16)

struct ColumnFinishArgs {
  const float *partials;
  float *sums;
  uint32_t slices, c;
};
static_assert(sizeof(ColumnFinishArgs) == 24, "cuda/src/matmul.rs asserts the same");

// 32 columns a block, 8 threads to a column.
extern "C" __global__ void __launch_bounds__(256) matmul_columns_finish(const __grid_constant__ ColumnFinishArgs a) {
  __shared__ float partial[8][32];
  const uint32_t across = threadIdx.x % 32, down = threadIdx.x / 32, column = blockIdx.x * 32 + across;
  float sum = 0.f;
  if (column < a.c) {
#pragma unroll 8
    for (uint32_t s = down; s < a.slices; s += 8) sum += a.partials[(size_t)s * a.c + column];
  }
  partial[down][across] = sum;
  __syncthreads();
  if (down > 0 || column >= a.c) return;
  float total = 0.f;
#pragma unroll
  for (int d = 0; d < 8; d++) total += partial[d][across];
  a.sums[column] = total;
}
KERNEL_EXPORT(matmul_columns_finish)
