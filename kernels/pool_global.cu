// pool_global: the mean over all pixels, and its gradient. graph::Op GlobalAvgPool, GlobalAvgPoolGrad.
//
//   x [n, pixels, c] -> y [n, c];   dy [n, c] -> dx [n, pixels, c] = dy / pixels.
// _f32, _bf16: both of one dtype, 16-byte aligned, c % 8 == 0; _any: any of them, any alignment.
// Bytes moved: each operand once. Not measured on hardware.
#include "pool.cuh"

struct PoolGlobalArgs {
  Operand image, output;   // x and y, or dx and dy
  Divide packs, pixels_by; // of a thread's number, backward: packs of a pixel, pixels of an image
  uint32_t threads, pixels, c;
  uint32_t block_packs;  // forward, packs of a pixel that a block takes
  float scale;           // 1 / pixels
  uint32_t pad;
};
static_assert(sizeof(PoolGlobalArgs) == 80, "cuda/src/pool.rs asserts the same");

// Grid (packs of a pixel / block_packs, n).
template <class T> DEVICE void pool_global(const PoolGlobalArgs &a) {
  constexpr int U = 4;
  __shared__ float scratch[8][ROW_THREADS];
  const BlockRows b = block_rows(a.block_packs);
  const uint32_t channel = 8 * (blockIdx.x * b.packs + b.lane), pixels = channel < a.c && b.row < b.rows ? a.pixels : 0;
  const size_t base = (size_t)blockIdx.y * a.pixels * a.c + channel;
  float sum[8] = {};
  uint32_t i = b.row;
  for (; i + (U - 1) * b.rows < pixels; i += U * b.rows) {
    Eight<T> x[U];
#pragma unroll
    for (int u = 0; u < U; u++) load8(x[u], a.image, base + (size_t)(i + u * b.rows) * a.c);
#pragma unroll
    for (int u = 0; u < U; u++)
#pragma unroll
      for (int j = 0; j < 8; j++) sum[j] += x[u][j];
  }
  for (; i < pixels; i += b.rows) {
    Eight<T> x;
    load8(x, a.image, base + (size_t)i * a.c);
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] += x[j];
  }
  sum_rows(sum, b, scratch);
  if (b.row == 0 && channel < a.c) {
#pragma unroll
    for (int j = 0; j < 8; j++) sum[j] *= a.scale;
    Store8<T>::to(a.output, (size_t)blockIdx.y * a.c + channel, sum);
  }
}
extern "C" __global__ void __launch_bounds__(ROW_THREADS) pool_global_f32(const __grid_constant__ PoolGlobalArgs a) {
  pool_global<float>(a);
}
KERNEL_EXPORT(pool_global_f32)
extern "C" __global__ void __launch_bounds__(ROW_THREADS) pool_global_bf16(const __grid_constant__ PoolGlobalArgs a) {
  pool_global<bf16>(a);
}
KERNEL_EXPORT(pool_global_bf16)
// A thread per channel of an image; a one-dimensional grid. `packs` are its channels.
extern "C" __global__ void __launch_bounds__(ROW_THREADS) pool_global_any(const __grid_constant__ PoolGlobalArgs a) {
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const uint32_t n = t / a.packs;
    const size_t base = (size_t)n * a.pixels * a.c + (t - n * a.c);
    float sum = 0.f;
    for (uint32_t i = 0; i < a.pixels; i++) sum += get(a.image, base + (size_t)i * a.c);
    set(a.output, t, sum * a.scale);
  }
}
KERNEL_EXPORT(pool_global_any)

template <class T> DEVICE void pool_global_grad(const PoolGlobalArgs &a) {
  constexpr int N = Channels<T>::N;
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const uint32_t pixel = t / a.packs, n = pixel / a.pixels_by;
    Channels<T> dy;
    float dx[N];
    dy.load(a.output, (size_t)n * a.c + (t - pixel * a.packs.divisor) * N);
#pragma unroll
    for (int j = 0; j < N; j++) dx[j] = dy[j] * a.scale;
    Channels<T>::store(a.image, (size_t)t * N, dx);
  }
}
extern "C" __global__ void __launch_bounds__(256) pool_global_grad_f32(const __grid_constant__ PoolGlobalArgs a) {
  pool_global_grad<float>(a);
}
KERNEL_EXPORT(pool_global_grad_f32)
extern "C" __global__ void __launch_bounds__(256) pool_global_grad_bf16(const __grid_constant__ PoolGlobalArgs a) {
  pool_global_grad<bf16>(a);
}
KERNEL_EXPORT(pool_global_grad_bf16)
extern "C" __global__ void __launch_bounds__(256) pool_global_grad_any(const __grid_constant__ PoolGlobalArgs a) {
  pool_global_grad<Any>(a);
}
KERNEL_EXPORT(pool_global_grad_any)
