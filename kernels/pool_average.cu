// pool_average: the mean of each window, padding counted, and its gradient. graph::Op AvgPool, AvgPoolGrad. Source: torch.nn.AvgPool2d.
//
//   x [n, h, w, c] -> y [n, p, q, c] = sum of the window / kernel^2;   dy -> dx = sum of the windows that cover a pixel / kernel^2.
// _f32, _bf16: both of one dtype, 16-byte aligned, c % 8 == 0; _any: any of them, any alignment. Sums row-major.
// Bytes moved: what is read about (kernel / stride)^2 times, mostly from caches; what is written once. Not measured on hardware.
#include "pool.cuh"

// The sum over `rows` and `columns` of [.., height, width, c], times a.scale, stored at `to`.
template <class T>
DEVICE void pool_sum(const PoolArgs &a, const Operand &from, size_t first, uint32_t width, PoolSpan rows, PoolSpan columns,
                     const Operand &y, size_t to) {
  constexpr int N = Channels<T>::N;
  float sum[N] = {};
  for (int r = rows.begin; r < rows.end; r++) {
#pragma unroll 2
    for (int s = columns.begin; s < columns.end; s++) {
      Channels<T> x;
      x.load(from, first + ((size_t)(uint32_t)r * width + (uint32_t)s) * a.c);
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] += x[j];
    }
  }
#pragma unroll
  for (int j = 0; j < N; j++) sum[j] *= a.scale;
  Channels<T>::store(y, to, sum);
}

template <class T> DEVICE void pool_average(const PoolArgs &a) {
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const PoolPlace at = pool_place<T>(a, t);
    PoolSpan rows = pool_taps(a, at.row, a.h), columns = pool_taps(a, at.column, a.w);
    const int top = (int)(at.row * a.stride.divisor) - (int)a.pad, left = (int)(at.column * a.stride.divisor) - (int)a.pad;
    rows = {rows.begin + top, rows.end + top};
    columns = {columns.begin + left, columns.end + left};
    pool_sum<T>(a, a.image, pool_at(at.n, a.h, a.w, a.c, 0, 0, at.channel), a.w, rows, columns, a.output,
                pool_at(at.n, a.p, a.q, a.c, at.row, at.column, at.channel));
  }
}
extern "C" __global__ void __launch_bounds__(256) pool_average_f32(const __grid_constant__ PoolArgs a) { pool_average<float>(a); }
KERNEL_EXPORT(pool_average_f32)
extern "C" __global__ void __launch_bounds__(256) pool_average_bf16(const __grid_constant__ PoolArgs a) { pool_average<bf16>(a); }
KERNEL_EXPORT(pool_average_bf16)
extern "C" __global__ void __launch_bounds__(256) pool_average_any(const __grid_constant__ PoolArgs a) { pool_average<Any>(a); }
KERNEL_EXPORT(pool_average_any)

template <class T> DEVICE void pool_average_grad(const PoolArgs &a) {
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const PoolPlace at = pool_place<T>(a, t);
    pool_sum<T>(a, a.output, pool_at(at.n, a.p, a.q, a.c, 0, 0, at.channel), a.q, pool_windows(a, at.row, a.p),
                pool_windows(a, at.column, a.q), a.image, pool_at(at.n, a.h, a.w, a.c, at.row, at.column, at.channel));
  }
}
extern "C" __global__ void __launch_bounds__(256) pool_average_grad_f32(const __grid_constant__ PoolArgs a) {
  pool_average_grad<float>(a);
}
KERNEL_EXPORT(pool_average_grad_f32)
extern "C" __global__ void __launch_bounds__(256) pool_average_grad_bf16(const __grid_constant__ PoolArgs a) {
  pool_average_grad<bf16>(a);
}
KERNEL_EXPORT(pool_average_grad_bf16)
extern "C" __global__ void __launch_bounds__(256) pool_average_grad_any(const __grid_constant__ PoolArgs a) {
  pool_average_grad<Any>(a);
}
KERNEL_EXPORT(pool_average_grad_any)
