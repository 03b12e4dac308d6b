// rows_mix: each row mixed with another. graph::Op MixRows (mixup).
//
//   y[r, i] = lambda x[r, i] + (1 - lambda) x[permutation[r], i], in f32
// x, y: T [rows,width]; permutation: i32 [rows]; lambda: one float. A unit is 16 bytes where the width is a multiple of that and x and y
// are 16-byte aligned, else one element. Bytes moved: x twice, y once. Not measured on hardware.
#include "lanes.cuh"
#include "memory.cuh"

struct RowsMixArgs {
  const void *x;
  void *y;
  const int32_t *permutation;
  Operand lambda;
  Divide units;  // of a row
  uint32_t n;    // units in all
};
static_assert(sizeof(RowsMixArgs) == 56, "cuda/src/image.rs asserts the same");

template <class T, int LANES> DEVICE void rows_mix(const RowsMixArgs &a) {
  const float lambda = get(a.lambda, 0), rest = 1.f - lambda;
  const T *x = (const T *)a.x;
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t row = i / a.units, unit = i - row * a.units.divisor;
    Lanes<T, LANES> v = load_lanes<LANES>(x + (size_t)LANES * i);
    const Lanes<T, LANES> other = load_lanes<LANES>(x + LANES * ((size_t)a.permutation[row] * a.units.divisor + unit));
#pragma unroll
    for (int k = 0; k < LANES; k++) v.v[k] = from_f32<T>(fmaf(lambda, to_f32(v.v[k]), rest * to_f32(other.v[k])));
    store_lanes((T *)a.y + (size_t)LANES * i, v);
  }
}

extern "C" __global__ void __launch_bounds__(256) rows_mix_f32(const __grid_constant__ RowsMixArgs a) {
  rows_mix<float, LANES_OF<float>>(a);
}
KERNEL_EXPORT(rows_mix_f32)
extern "C" __global__ void __launch_bounds__(256) rows_mix_bf16(const __grid_constant__ RowsMixArgs a) {
  rows_mix<bf16, LANES_OF<bf16>>(a);
}
KERNEL_EXPORT(rows_mix_bf16)
extern "C" __global__ void __launch_bounds__(256) rows_mix_f32_one(const __grid_constant__ RowsMixArgs a) {
  rows_mix<float, 1>(a);
}
KERNEL_EXPORT(rows_mix_f32_one)
extern "C" __global__ void __launch_bounds__(256) rows_mix_bf16_one(const __grid_constant__ RowsMixArgs a) {
  rows_mix<bf16, 1>(a);
}
KERNEL_EXPORT(rows_mix_bf16_one)
