// pool_max: the maximum of each window, and its gradient. graph::Op MaxPool, MaxPoolGrad. Source: torch.nn.MaxPool2d.
//
//   x [n, h, w, c] -> y [n, p, q, c], argmax u8 [n, p, q, c]: tap r * kernel + s of the window, the first of equal ones; a NaN before any
//   number, of several the last; padding is never a maximum.
//   dy, argmax -> dx [n, h, w, c]: a pixel adds up the windows that chose it, row-major, each read where it is needed.
// _f32, _bf16: both of one dtype, everything 16-byte aligned, c % 8 == 0; _any: any of them, any alignment.
// Bytes moved: x about (kernel / stride)^2 times, mostly from caches; y and argmax once; backward the same of dy and argmax, dx once.
// Not measured on hardware.
#include "pool.cuh"

DEVICE void store_argmax(uint8_t *to, const uint32_t (&tap)[8]) {
  *reinterpret_cast<uint2 *>(to) = make_uint2(tap[0] | tap[1] << 8 | tap[2] << 16 | tap[3] << 24,
                                              tap[4] | tap[5] << 8 | tap[6] << 16 | tap[7] << 24);
}
DEVICE void store_argmax(uint8_t *to, const uint32_t (&tap)[1]) { *to = (uint8_t)tap[0]; }
DEVICE void load_argmax(const uint8_t *from, uint32_t (&tap)[8]) {
  const uint2 v = *reinterpret_cast<const uint2 *>(from);
#pragma unroll
  for (int j = 0; j < 8; j++) tap[j] = (j < 4 ? v.x : v.y) >> (8 * (j % 4)) & 0xff;
}
DEVICE void load_argmax(const uint8_t *from, uint32_t (&tap)[1]) { tap[0] = *from; }

template <class T> DEVICE void pool_max(const PoolArgs &a) {
  constexpr int N = Channels<T>::N, U = 3;
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const PoolPlace at = pool_place<T>(a, t);
    const PoolSpan rows = pool_taps(a, at.row, a.h), columns = pool_taps(a, at.column, a.w);
    const int top = (int)(at.row * a.stride.divisor) - (int)a.pad, left = (int)(at.column * a.stride.divisor) - (int)a.pad;
    const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
    float best[N];
    uint32_t tap[N];
#pragma unroll
    for (int j = 0; j < N; j++) {
      best[j] = __uint_as_float(0xff800000u);  // minus infinity
      tap[j] = empty ? 0 : rows.begin * a.kernel + columns.begin;
    }
    for (int r = rows.begin; r < rows.end; r++) {
      for (int s = columns.begin; s < columns.end; s += U) {
        Channels<T> x[U];
        // Past the end the last tap again, which changes nothing.
#pragma unroll
        for (int u = 0; u < U; u++) {
          x[u].load(a.image, pool_at(at.n, a.h, a.w, a.c, top + r, left + min(s + u, columns.end - 1), at.channel));
        }
#pragma unroll
        for (int u = 0; u < U; u++) {
          const uint32_t here = r * a.kernel + min(s + u, columns.end - 1);
#pragma unroll
          for (int j = 0; j < N; j++) {
            const bool better = x[u][j] > best[j] || x[u][j] != x[u][j];
            best[j] = better ? x[u][j] : best[j];
            tap[j] = better ? here : tap[j];
          }
        }
      }
    }
    const size_t to = pool_at(at.n, a.p, a.q, a.c, at.row, at.column, at.channel);
    Channels<T>::store(a.output, to, best);
    store_argmax(a.argmax + to, tap);
  }
}
extern "C" __global__ void __launch_bounds__(256) pool_max_f32(const __grid_constant__ PoolArgs a) { pool_max<float>(a); }
KERNEL_EXPORT(pool_max_f32)
extern "C" __global__ void __launch_bounds__(256) pool_max_bf16(const __grid_constant__ PoolArgs a) { pool_max<bf16>(a); }
KERNEL_EXPORT(pool_max_bf16)
extern "C" __global__ void __launch_bounds__(256) pool_max_any(const __grid_constant__ PoolArgs a) { pool_max<Any>(a); }
KERNEL_EXPORT(pool_max_any)

template <class T> DEVICE void pool_max_grad(const PoolArgs &a) {
  constexpr int N = Channels<T>::N;
  for (uint32_t t = thread_in_grid(); t < a.threads; t += threads_in_grid()) {
    const PoolPlace at = pool_place<T>(a, t);
    const PoolSpan rows = pool_windows(a, at.row, a.p), columns = pool_windows(a, at.column, a.q);
    float dx[N] = {};
    for (int p = rows.begin; p < rows.end; p++) {
      const uint32_t r = at.row + a.pad - p * a.stride.divisor;
#pragma unroll 2
      for (int q = columns.begin; q < columns.end; q++) {
        const size_t from = pool_at(at.n, a.p, a.q, a.c, p, q, at.channel);
        const uint32_t here = r * a.kernel + at.column + a.pad - q * a.stride.divisor;
        Channels<T> dy;
        uint32_t tap[N];
        dy.load(a.output, from);
        load_argmax(a.argmax + from, tap);
#pragma unroll
        for (int j = 0; j < N; j++) dx[j] += tap[j] == here ? dy[j] : 0.f;
      }
    }
    Channels<T>::store(a.image, pool_at(at.n, a.h, a.w, a.c, at.row, at.column, at.channel), dx);
  }
}
extern "C" __global__ void __launch_bounds__(256) pool_max_grad_f32(const __grid_constant__ PoolArgs a) {
  pool_max_grad<float>(a);
}
KERNEL_EXPORT(pool_max_grad_f32)
extern "C" __global__ void __launch_bounds__(256) pool_max_grad_bf16(const __grid_constant__ PoolArgs a) {
  pool_max_grad<bf16>(a);
}
KERNEL_EXPORT(pool_max_grad_bf16)
extern "C" __global__ void __launch_bounds__(256) pool_max_grad_any(const __grid_constant__ PoolArgs a) {
  pool_max_grad<Any>(a);
}
KERNEL_EXPORT(pool_max_grad_any)
