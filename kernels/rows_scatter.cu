// rows_scatter: rows added to the rows that an index names. graph::Op ScatterAddRows, MixRowsGrad.
//
//   dx[r] = own dy[r] + other sum over j with index[j] = r of dy[j], j ascending, in f32
//   ScatterAddRows: own = 0 (dy[r] is not read), other = 1; MixRowsGrad: own = lambda, other = 1 - lambda.
// dy: T [n,width]; index: i32 [n], entries outside dx count nothing; dx: T [rows,width]; lambda: one float or null. A unit is 16 bytes
// where the width is a multiple of that and dy and dx are 16-byte aligned, else one element. Grid: rows x tiles of 512 units.
// Bytes moved: dy (twice with lambda), dx once, the index once a block. Not measured on hardware.
//
// Each output row looks for its sources, so no two threads add to one element: the order is fixed without atomics. The block finds
// them as bits, 2048 index entries between two barriers.
#include "lanes.cuh"
#include "memory.cuh"

struct RowsScatterArgs {
  const void *dy;
  void *dx;
  const int32_t *index;
  Operand lambda;
  uint32_t n, units;  // rows of dy, units of a row
};
static_assert(sizeof(RowsScatterArgs) == 48, "cuda/src/rows.rs asserts the same");

constexpr uint32_t THREADS = 256, TURN = 2, ROUND = 2048;

// sum += weight row
template <class T, int LANES>
DEVICE void add_row(float (&sum)[TURN][LANES], const RowsScatterArgs &a, uint32_t row, float weight) {
#pragma unroll
  for (uint32_t k = 0; k < TURN; k++) {
    const uint32_t unit = (TURN * blockIdx.y + k) * THREADS + threadIdx.x;
    if (unit >= a.units) continue;
    const Lanes<T, LANES> v = load_lanes<LANES>((const T *)a.dy + LANES * ((size_t)row * a.units + unit));
#pragma unroll
    for (int l = 0; l < LANES; l++) sum[k][l] = fmaf(weight, to_f32(v.v[l]), sum[k][l]);
  }
}

template <class T, int LANES> DEVICE void rows_scatter(const RowsScatterArgs &a) {
  __shared__ uint32_t sources[ROUND / 32];
  const uint32_t row = blockIdx.x, lane = threadIdx.x % 32;
  float sum[TURN][LANES] = {}, weight = 1.f;
  if (a.lambda.p) {
    const float lambda = get(a.lambda, 0);
    weight = 1.f - lambda;
    add_row<T, LANES>(sum, a, row, lambda);
  }
  for (uint32_t begin = 0; begin < a.n; begin += ROUND) {
    const uint32_t words = (min(ROUND, a.n - begin) + 31) / 32;
    if (begin) __syncthreads();  // the round before is read
    for (uint32_t w = threadIdx.x / 32; w < words; w += THREADS / 32) {
      const uint32_t j = begin + 32 * w + lane;
      const uint32_t found = __ballot_sync(0xffffffffu, j < a.n && (uint32_t)a.index[j] == row);
      if (lane == 0) sources[w] = found;
    }
    __syncthreads();
    for (uint32_t w = 0; w < words; w++) {
      for (uint32_t left = sources[w]; left; left &= left - 1) {
        add_row<T, LANES>(sum, a, begin + 32 * w + __ffs((int)left) - 1, weight);
      }
    }
  }
#pragma unroll
  for (uint32_t k = 0; k < TURN; k++) {
    const uint32_t unit = (TURN * blockIdx.y + k) * THREADS + threadIdx.x;
    if (unit >= a.units) continue;
    Lanes<T, LANES> v;
#pragma unroll
    for (int l = 0; l < LANES; l++) v.v[l] = from_f32<T>(sum[k][l]);
    store_lanes((T *)a.dx + LANES * ((size_t)row * a.units + unit), v);
  }
}

extern "C" __global__ void __launch_bounds__(256) rows_scatter_f32(const __grid_constant__ RowsScatterArgs a) {
  rows_scatter<float, LANES_OF<float>>(a);
}
KERNEL_EXPORT(rows_scatter_f32)
extern "C" __global__ void __launch_bounds__(256) rows_scatter_bf16(const __grid_constant__ RowsScatterArgs a) {
  rows_scatter<bf16, LANES_OF<bf16>>(a);
}
KERNEL_EXPORT(rows_scatter_bf16)
extern "C" __global__ void __launch_bounds__(256) rows_scatter_f32_one(const __grid_constant__ RowsScatterArgs a) {
  rows_scatter<float, 1>(a);
}
KERNEL_EXPORT(rows_scatter_f32_one)
extern "C" __global__ void __launch_bounds__(256) rows_scatter_bf16_one(const __grid_constant__ RowsScatterArgs a) {
  rows_scatter<bf16, 1>(a);
}
KERNEL_EXPORT(rows_scatter_bf16_one)
