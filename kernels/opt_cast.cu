// opt_cast: to <- bf16(from), the copies of f32 weights that tensor cores read, and gradients on their way between ranks.
// opt_cast_back: to <- f32(from), gradients that came from them.
//
// One is f32[n], the other bf16[n], n < 2^31; by vectors where both are 16-byte aligned. Bytes moved: 6 per element.
// Not measured on hardware.
#include "memory.cuh"

struct CastArgs {
  const float *from;
  bf16 *to;
  uint32_t n, pad;
};
static_assert(sizeof(CastArgs) == 24, "cuda/src/update.rs asserts the same");

// 8 elements a thread, the tail one by one.
extern "C" __global__ void __launch_bounds__(256) opt_cast(const __grid_constant__ CastArgs a) {
  const uint32_t packs = ((uintptr_t)a.from | (uintptr_t)a.to) % 16 ? 0 : a.n / 8;
  for (uint32_t i = thread_in_grid(); i < packs; i += threads_in_grid()) {
    const Pack<float> low = load_pack(a.from + 8 * i), high = load_pack(a.from + 8 * i + 4);
    Pack<bf16> y;
#pragma unroll
    for (int l = 0; l < 4; l++) y.v[l] = to_bf16(low.v[l]), y.v[4 + l] = to_bf16(high.v[l]);
    store_pack(a.to + 8 * i, y);
  }
  for (uint32_t i = 8 * packs + thread_in_grid(); i < a.n; i += threads_in_grid()) a.to[i] = to_bf16(a.from[i]);
}
KERNEL_EXPORT(opt_cast)

struct CastBackArgs {
  const bf16 *from;
  float *to;
  uint32_t n, pad;
};
static_assert(sizeof(CastBackArgs) == 24, "cuda/src/update.rs asserts the same");

extern "C" __global__ void __launch_bounds__(256) opt_cast_back(const __grid_constant__ CastBackArgs a) {
  const uint32_t packs = ((uintptr_t)a.from | (uintptr_t)a.to) % 16 ? 0 : a.n / 8;
  for (uint32_t i = thread_in_grid(); i < packs; i += threads_in_grid()) {
    const Pack<bf16> x = load_pack(a.from + 8 * i);
    Pack<float> low, high;
#pragma unroll
    for (int l = 0; l < 4; l++) low.v[l] = to_f32(x.v[l]), high.v[l] = to_f32(x.v[4 + l]);
    store_pack(a.to + 8 * i, low);
    store_pack(a.to + 8 * i + 4, high);
  }
  for (uint32_t i = 8 * packs + thread_in_grid(); i < a.n; i += threads_in_grid()) a.to[i] = to_f32(a.from[i]);
}
KERNEL_EXPORT(opt_cast_back)
