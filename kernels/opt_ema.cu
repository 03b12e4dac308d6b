// opt_ema: moving average of many tensors in one launch. graph::Op Ema.
//   average <- d average + (1 - d) source, d = scalars->slot[decay_slot]; nothing is written where *finite is 0
//
// chunks: [blocks] runs of at most 2^13 elements; average, source: f32[n], any alignment, by vectors where both are 16-byte aligned.
// finite: f32[1]. Bytes moved: 8 read and 4 written per element. Not measured on hardware.
#include "memory.cuh"
#include "step.cuh"

struct EmaChunk {
  float *average;
  const float *source;
  uint32_t n, pad;
};
struct EmaArgs {
  const EmaChunk *chunks;
  const float *finite;
  const Scalars *scalars;
  uint32_t decay_slot, pad;
};
static_assert(sizeof(EmaChunk) == 24 && sizeof(EmaArgs) == 32, "cuda/src/update.rs asserts the same");

// A chunk a block.
extern "C" __global__ void __launch_bounds__(256) opt_ema(const __grid_constant__ EmaArgs a) {
  if (*a.finite == 0.f) return;
  const EmaChunk c = a.chunks[blockIdx.x];
  const double decay = a.scalars->slot[a.decay_slot];
  const float keep = (float)decay, take = (float)(1.0 - decay);
  const uint32_t packs = ((uintptr_t)c.average | (uintptr_t)c.source) % 16 ? 0 : c.n / 4;
#pragma unroll 2
  for (uint32_t i = 4 * threadIdx.x; i < 4 * packs; i += 4 * 256) {
    Pack<float> average = load_pack(c.average + i);
    const Pack<float> source = load_pack(c.source + i);
#pragma unroll
    for (int l = 0; l < 4; l++) average.v[l] = fmaf(keep, average.v[l], take * source.v[l]);
    store_pack(c.average + i, average);
  }
  for (uint32_t i = 4 * packs + threadIdx.x; i < c.n; i += 256) {
    c.average[i] = fmaf(keep, c.average[i], take * c.source[i]);
  }
}
KERNEL_EXPORT(opt_ema)
