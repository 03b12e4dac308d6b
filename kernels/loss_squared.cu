// loss_squared: squared distance of two values. graph::Op SquaredError and SquaredErrorGrad.
//
//   value = Σ (a − b)² / divisor;   da = (2 weight / divisor) (a − b);   b is zero where absent
// a, b, da: n elements, each f32 or bf16 whatever the others are; value: f32 [1]. Packs of 8 where all addresses are 16-byte aligned.
// Bytes moved: each operand once. Sums: 8 squares in f32, then f64 per thread, block and grid, in an order given by n alone.
// Not measured on hardware.
#include "memory.cuh"
#include "reduce.cuh"
#include "step.cuh"

struct SquaredArgs {
  Operand a, b, y;   // y: the gradient
  double *partial;   // [blocks]
  float *value;
  Weight weight;
  Divisor divisor;
  const Scalars *scalars;
  uint32_t n, aligned, blocks, pad;
};
static_assert(sizeof(SquaredArgs) == 128, "cuda/src/loss.rs asserts the same");

// Elements i..i+8 of an operand, zeros where there is none and past its end.
DEVICE void read_some(const SquaredArgs &a, const Operand &x, uint32_t i, float (&v)[8]) {
  if (x.p && a.aligned && a.n - i >= 8) return read8(x, i, v);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k] = x.p && (uint32_t)k < a.n - i ? get(x, i + k) : 0.f;
}

extern "C" __global__ void __launch_bounds__(256) loss_squared_partial(const __grid_constant__ SquaredArgs a) {
  __shared__ double scratch[32];
  double sum = 0.0;
  for (uint32_t i = 8 * thread_in_grid(); i < a.n; i += 8 * threads_in_grid()) {
    float x[8], other[8], squares = 0.f;
    read_some(a, a.a, i, x);
    read_some(a, a.b, i, other);
#pragma unroll
    for (int k = 0; k < 8; k++) squares = fmaf(x[k] - other[k], x[k] - other[k], squares);
    sum += squares;
  }
  sum = block_sum<256>(sum, scratch);
  if (threadIdx.x == 0) a.partial[blockIdx.x] = sum;
}
KERNEL_EXPORT(loss_squared_partial)

// One block.
extern "C" __global__ void __launch_bounds__(256) loss_squared_value(const __grid_constant__ SquaredArgs a) {
  __shared__ double scratch[32];
  double sum = 0.0;
  for (uint32_t i = threadIdx.x; i < a.blocks; i += 256) sum += a.partial[i];
  sum = block_sum<256>(sum, scratch);
  if (threadIdx.x == 0) *a.value = (float)(sum / value(a.divisor, a.scalars));
}
KERNEL_EXPORT(loss_squared_value)

extern "C" __global__ void __launch_bounds__(256) loss_squared_grad(const __grid_constant__ SquaredArgs a) {
  const float factor = (float)(2.0 * value(a.weight, a.scalars) / value(a.divisor, a.scalars));
  for (uint32_t i = 8 * thread_in_grid(); i < a.n; i += 8 * threads_in_grid()) {
    float x[8], other[8];
    read_some(a, a.a, i, x);
    read_some(a, a.b, i, other);
#pragma unroll
    for (int k = 0; k < 8; k++) x[k] = factor * (x[k] - other[k]);
    if (a.aligned && a.n - i >= 8) {
      write8(a.y, i, x);
    } else {
#pragma unroll
      for (int k = 0; k < 8; k++) {
        if ((uint32_t)k < a.n - i) set(a.y, i + k, x[k]);
      }
    }
  }
}
KERNEL_EXPORT(loss_squared_grad)
