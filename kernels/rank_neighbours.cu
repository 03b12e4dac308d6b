// rank_neighbours: targets from the predictions of similar rows. graph::Op NeighbourTargets, METHODS.md chapter 7.11.
//
//   Q = (1 − ω)(I − M)⁻¹ P, M = ωW;  (I − M)⁻¹ = Π (I + M^(2^i)), i = 0, 1, ...
// Rows of M sum to ω < 1 and nothing is negative: products cancel nothing, and i = 0..s−1 leave an error of ω^(2^s). Each step is
// one matrix product, parallel over the device, where elimination would be n dependent ones.
//   features f32 or bf16 [n, d]; gram f32 [n, n]; from, to f32 [n, n + k]: M^(2^i), then X; Q f32 [n, k]. Any alignment.
// Bytes moved: n (n + k) read and written a step, from L2. Not measured on hardware.
#include "memory.cuh"
#include "reduce.cuh"

struct NeighboursArgs {
  Operand features;
  float *gram;
  const float *from;
  float *to;
  float *out;  // of the last step, else null
  uint32_t n, d, k;
  float omega;
};
static_assert(sizeof(NeighboursArgs) == 64, "cuda/src/rank.rs asserts the same");
constexpr uint32_t TILE = 32;

struct Tiles {
  float a[TILE][TILE + 1], b[TILE][TILE + 1];
};

// Rows r.. and columns c.. of x [rows, columns], rows `stride` apart, zeros outside.
DEVICE void load_tile(float (&to)[TILE][TILE + 1], const Operand &x, uint32_t r, uint32_t c, uint32_t rows, uint32_t columns, uint32_t stride) {
  for (uint32_t i = threadIdx.x / TILE; i < TILE; i += 256 / TILE) {
    const uint32_t row = r + i, column = c + threadIdx.x % TILE;
    to[i][threadIdx.x % TILE] = row < rows && column < columns ? get(x, (size_t)row * stride + column) : 0.f;
  }
}

// 2 x 2 products of a thread, 16 apart: its rows and columns of a 32 x 32 tile start at (threadIdx.x / 16, threadIdx.x % 16).
// b is taken transposed where `B_ROWS`: rows of b are columns of the product.
template <bool B_ROWS> DEVICE void multiply_tile(const Tiles &t, float (&sum)[2][2]) {
  const uint32_t y = threadIdx.x / 16, x = threadIdx.x % 16;
#pragma unroll 8
  for (uint32_t c = 0; c < TILE; c++) {
    const float a[2] = {t.a[y][c], t.a[y + 16][c]};
    const float b[2] = {B_ROWS ? t.b[x][c] : t.b[c][x], B_ROWS ? t.b[x + 16][c] : t.b[c][x + 16]};
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
      for (int j = 0; j < 2; j++) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
  }
}

// gram = F Fᵀ, a block a tile.
extern "C" __global__ void __launch_bounds__(256) rank_neighbours_gram(const __grid_constant__ NeighboursArgs a) {
  __shared__ Tiles t;
  const uint32_t r = blockIdx.y * TILE, c = blockIdx.x * TILE;
  float sum[2][2] = {};
  for (uint32_t d = 0; d < a.d; d += TILE) {
    load_tile(t.a, a.features, r, d, a.n, a.d, a.d);
    load_tile(t.b, a.features, c, d, a.n, a.d, a.d);
    __syncthreads();
    multiply_tile<true>(t, sum);
    __syncthreads();
  }
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t row = r + threadIdx.x / 16 + i / 2 * 16, column = c + threadIdx.x % 16 + i % 2 * 16;
    if (row < a.n && column < a.n) a.gram[(size_t)row * a.n + column] = sum[i / 2][i % 2];
  }
}
KERNEL_EXPORT(rank_neighbours_gram)

// The length of a row of features; one without direction divides by the guard. A NaN passes.
DEVICE float length(const float *gram, uint32_t n, uint32_t i) {
  const float norm = sqrtf(gram[(size_t)i * n + i]);
  return norm < 1e-12f ? 1e-12f : norm;
}

// M = ω times the row softmax of cosines without the diagonal: a block a row. Cosines are at most 1: no exponential overflows.
extern "C" __global__ void __launch_bounds__(256) rank_neighbours_weights(const __grid_constant__ NeighboursArgs a) {
  __shared__ float scratch[32];
  const uint32_t i = blockIdx.x;
  const float *gram = a.gram + (size_t)i * a.n, own = length(a.gram, a.n, i);
  float *m = a.to + (size_t)i * (a.n + a.k), sum = 0.f;
  for (uint32_t j = threadIdx.x; j < a.n; j += 256) {
    const float w = j == i ? 0.f : expf(gram[j] / own / length(a.gram, a.n, j));
    m[j] = w;
    sum += w;
  }
  sum = block_sum<256>(sum, scratch);
  for (uint32_t j = threadIdx.x; j < a.n; j += 256) m[j] *= a.omega / sum;
}
KERNEL_EXPORT(rank_neighbours_weights)

// [M | X] -> [M M | X + M X], a block a tile; the last step makes X alone, as Q.
extern "C" __global__ void __launch_bounds__(256) rank_neighbours_step(const __grid_constant__ NeighboursArgs a) {
  __shared__ Tiles t;
  const uint32_t width = a.n + a.k, r = blockIdx.y * TILE, c = blockIdx.x * TILE + (a.out ? a.n : 0);
  const Operand from{(void *)a.from, FLOAT32, 0};
  float sum[2][2] = {};
  for (uint32_t d = 0; d < a.n; d += TILE) {
    load_tile(t.a, from, r, d, a.n, a.n, width);
    load_tile(t.b, from, d, c, a.n, width, width);
    __syncthreads();
    multiply_tile<false>(t, sum);
    __syncthreads();
  }
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t row = r + threadIdx.x / 16 + i / 2 * 16, column = c + threadIdx.x % 16 + i % 2 * 16;
    if (row >= a.n || column >= width) continue;
    const float v = sum[i / 2][i % 2] + (column < a.n ? 0.f : a.from[(size_t)row * width + column]);
    if (a.out) a.out[(size_t)row * a.k + column - a.n] = v;
    else a.to[(size_t)row * width + column] = v;
  }
}
KERNEL_EXPORT(rank_neighbours_step)
