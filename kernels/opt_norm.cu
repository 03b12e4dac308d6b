// opt_norm: sum of squares of all gradients, and whether every input is finite. graph::Op GradNorm.
//   norm2 = sum over gradients of g^2;  finite = 1 where no element of any gradient or loss value is NaN or infinite, else 0
//
// chunks: [blocks] runs of at most 2^14 elements, those of gradients first; x: f32[n], any alignment, 16-byte aligned ones by vectors.
// partials: [blocks]; norm2, finite: f32[1].
// A thread adds at most 64 squares in f32 and blocks add in f64, in an order that depends on the sizes alone. Where a sum leaves f32,
// norm2 is infinite too, as the CPU's is; finiteness is asked of the elements, never of their sum.
// Bytes moved: 4 per element. Not measured on hardware.
#include "memory.cuh"
#include "reduce.cuh"

struct NormChunk {
  const float *x;
  uint32_t n, pad;
};
struct NormPartial {
  double squares;
  uint32_t finite, pad;
};
struct NormArgs {
  const NormChunk *chunks;
  NormPartial *partials;
};
static_assert(sizeof(NormChunk) == 16 && sizeof(NormPartial) == 16 && sizeof(NormArgs) == 16, "cuda/src/update.rs asserts the same");

struct Squares {
  float sum = 0.f;
  uint32_t largest = 0;  // bits of the largest magnitude: from 0x7f800000 on it is not finite
  DEVICE void add(float v) {
    sum = fmaf(v, v, sum);
    largest = max(largest, __float_as_uint(v) & 0x7fffffffu);
  }
};

// A chunk a block.
extern "C" __global__ void __launch_bounds__(256) opt_norm_partial(const __grid_constant__ NormArgs a) {
  __shared__ double scratch[32];
  const NormChunk c = a.chunks[blockIdx.x];
  const uint32_t packs = (uintptr_t)c.x % 16 ? 0 : c.n / 4;
  Squares s[4];
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < packs; i += 256) {
    const Pack<float> v = load_pack(c.x + 4 * i);
#pragma unroll
    for (int l = 0; l < 4; l++) s[l].add(v.v[l]);
  }
  for (uint32_t i = 4 * packs + threadIdx.x; i < c.n; i += 256) s[0].add(c.x[i]);
  const uint32_t largest = max(max(s[0].largest, s[1].largest), max(s[2].largest, s[3].largest));
  const double squares = block_sum<256>(((double)s[0].sum + s[1].sum) + ((double)s[2].sum + s[3].sum), scratch);
  const double strange = block_sum<256>(largest < 0x7f800000u ? 0.0 : 1.0, scratch);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = {squares, strange == 0.0, 0};
}
KERNEL_EXPORT(opt_norm_partial)

struct NormFinishArgs {
  const NormPartial *partials;
  float *norm2, *finite;
  uint32_t chunks, grad_chunks;
};
static_assert(sizeof(NormFinishArgs) == 32, "cuda/src/update.rs asserts the same");

// One block.
extern "C" __global__ void __launch_bounds__(512) opt_norm_finish(const __grid_constant__ NormFinishArgs a) {
  __shared__ double scratch[32];
  double squares = 0.0, strange = 0.0;
#pragma unroll 4
  for (uint32_t i = threadIdx.x; i < a.chunks; i += 512) {
    const NormPartial p = a.partials[i];
    if (i < a.grad_chunks) squares += p.squares;
    if (!p.finite) strange += 1.0;
  }
  squares = block_sum<512>(squares, scratch);
  strange = block_sum<512>(strange, scratch);
  if (threadIdx.x == 0) {
    *a.norm2 = (float)squares;
    *a.finite = strange == 0.0 ? 1.f : 0.f;
  }
}
KERNEL_EXPORT(opt_norm_finish)
