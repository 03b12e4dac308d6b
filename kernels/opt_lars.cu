// opt_lars: LARS over all parameters of an optimizer in two launches. graph::Op Lars; You, Gitman, Ginsburg 2017, arXiv:1708.03888.
//   r = trust |w| / (|g| + decay |w| + epsilon), 1 where a norm is 0 or the tensor is not adapted
//   v <- mu v + r lr (g + decay w);   w <- w - v;   nothing is written to w and v where *finite is 0
//
// chunks: [blocks] runs of at most 2^13 elements, those of a tensor one after another; partials: [blocks]. w, v, g: f32[n], any
// alignment, by vectors where all three are 16-byte aligned. finite: f32[1]. lr is scalars->slot[lr_slot] times the chunk's factor.
// A thread adds at most 32 squares in f32, blocks add in f64 and then all blocks of a tensor add its partials in one order, which
// depends on the sizes alone. A tensor whose squares all vanish in f32 has norm 0.
// Bytes moved: 8 read per element for the norms, 12 read and 8 written for the update; a block of the update reads 16 bytes a chunk of
// its tensor too, from the L2 cache. Not measured on hardware.
#include "memory.cuh"
#include "reduce.cuh"
#include "step.cuh"

struct LarsChunk {
  float *w, *v;
  const float *g;
  double lr_factor, decay;
  uint32_t first, partials;  // those of the tensor
  uint32_t n, adapts;
};
struct LarsPartial {
  double w2, g2;
};
struct LarsArgs {
  const LarsChunk *chunks;
  LarsPartial *partials;
  const float *finite;
  const Scalars *scalars;
  double trust, epsilon;
  float momentum;
  uint32_t lr_slot;
};
static_assert(sizeof(LarsChunk) == 56 && sizeof(LarsPartial) == 16 && sizeof(LarsArgs) == 56, "cuda/src/update.rs asserts the same");

// A chunk a block. Chunks of tensors that are not adapted are skipped; nobody reads their partials.
extern "C" __global__ void __launch_bounds__(256) opt_lars_norms(const __grid_constant__ LarsArgs a) {
  __shared__ double scratch[32];
  const LarsChunk c = a.chunks[blockIdx.x];
  if (!c.adapts) return;
  const uint32_t packs = ((uintptr_t)c.w | (uintptr_t)c.g) % 16 ? 0 : c.n / 4;
  float w2[4] = {}, g2[4] = {};
#pragma unroll 2
  for (uint32_t i = threadIdx.x; i < packs; i += 256) {
    const Pack<float> w = load_pack((const float *)c.w + 4 * i), g = load_pack(c.g + 4 * i);
#pragma unroll
    for (int l = 0; l < 4; l++) w2[l] = fmaf(w.v[l], w.v[l], w2[l]), g2[l] = fmaf(g.v[l], g.v[l], g2[l]);
  }
  for (uint32_t i = 4 * packs + threadIdx.x; i < c.n; i += 256) {
    w2[0] = fmaf(c.w[i], c.w[i], w2[0]);
    g2[0] = fmaf(c.g[i], c.g[i], g2[0]);
  }
  const double w = block_sum<256>(((double)w2[0] + w2[1]) + ((double)w2[2] + w2[3]), scratch);
  const double g = block_sum<256>(((double)g2[0] + g2[1]) + ((double)g2[2] + g2[3]), scratch);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = {w, g};
}
KERNEL_EXPORT(opt_lars_norms)

struct LarsRule {
  float rate, decay, momentum;
  DEVICE void apply(float &w, float &v, float g) const {
    v = fmaf(momentum, v, rate * fmaf(decay, w, g));
    w -= v;
  }
};

// A chunk a block.
extern "C" __global__ void __launch_bounds__(256) opt_lars(const __grid_constant__ LarsArgs a) {
  __shared__ double scratch[32];
  __shared__ float rate;
  if (*a.finite == 0.f) return;
  const LarsChunk c = a.chunks[blockIdx.x];
  double w2 = 0.0, g2 = 0.0;
  if (c.adapts) {
    for (uint32_t i = threadIdx.x; i < c.partials; i += 256) {
      const LarsPartial p = a.partials[c.first + i];
      w2 += p.w2;
      g2 += p.g2;
    }
    w2 = block_sum<256>(w2, scratch);
    g2 = block_sum<256>(g2, scratch);
  }
  // By one thread: double roots and quotients are slow where doubles are.
  if (threadIdx.x == 0) {
    double r = a.scalars->slot[a.lr_slot] * c.lr_factor;
    if (w2 > 0.0 && g2 > 0.0) {
      const double w = sqrt(w2);
      r *= a.trust * w / (sqrt(g2) + c.decay * w + a.epsilon);
    }
    rate = (float)r;
  }
  __syncthreads();
  const LarsRule rule{rate, (float)c.decay, a.momentum};
  const uint32_t packs = ((uintptr_t)c.w | (uintptr_t)c.v | (uintptr_t)c.g) % 16 ? 0 : c.n / 4;
#pragma unroll 2
  for (uint32_t i = 4 * threadIdx.x; i < 4 * packs; i += 4 * 256) {
    Pack<float> w = load_pack(c.w + i), v = load_pack(c.v + i);
    const Pack<float> g = load_pack(c.g + i);
#pragma unroll
    for (int l = 0; l < 4; l++) rule.apply(w.v[l], v.v[l], g.v[l]);
    store_pack(c.v + i, v);
    store_pack(c.w + i, w);
  }
  for (uint32_t i = 4 * packs + threadIdx.x; i < c.n; i += 256) rule.apply(c.w[i], c.v[i], c.g[i]);
}
KERNEL_EXPORT(opt_lars)
