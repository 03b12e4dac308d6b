// opt_sgd: SGD over all parameters of an optimizer in one launch; semantics of torch.optim.SGD, dampening 0. graph::Op Sgd.
//   g' = clip g + decay w;   m <- mu m + g';   w <- w - lr (nesterov ? g' + mu m : m)
//   clip = min(1, clip_norm / (norm + 1e-6)) of torch.nn.utils.clip_grad_norm_; nothing is written where *finite is 0
//
// chunks: [blocks] runs of at most 2^13 elements; w, m, g: f32[n], any alignment, by vectors where all three are 16-byte aligned.
// norm2, finite: f32[1]. The learning rate is scalars->slot[lr_slot] times the chunk's factor.
// Bytes moved: 12 read and 8 written per element. Not measured on hardware.
#include "memory.cuh"
#include "step.cuh"

struct SgdChunk {
  float *w, *m;
  const float *g;
  double lr_factor;
  float decay;
  uint32_t n;
};
struct SgdArgs {
  const SgdChunk *chunks;
  const float *norm2, *finite;
  const Scalars *scalars;
  float momentum, clip_norm;
  uint32_t clips, nesterov, lr_slot, pad;
};
static_assert(sizeof(SgdChunk) == 40 && sizeof(SgdArgs) == 56, "cuda/src/update.rs asserts the same");

struct SgdRule {
  float clip, decay, momentum, lr;
  bool nesterov;
  DEVICE void apply(float &w, float &m, float g) const {
    g = fmaf(clip, g, decay * w);
    m = fmaf(momentum, m, g);
    w = fmaf(-lr, nesterov ? fmaf(momentum, m, g) : m, w);
  }
};

// A chunk a block.
extern "C" __global__ void __launch_bounds__(256) opt_sgd(const __grid_constant__ SgdArgs a) {
  if (*a.finite == 0.f) return;
  const SgdChunk c = a.chunks[blockIdx.x];
  // In f32: the norm was rounded to it, and double square roots are slow where doubles are.
  const float clip = a.clips ? fminf(a.clip_norm / (sqrtf(*a.norm2) + 1e-6f), 1.f) : 1.f;
  const SgdRule rule{clip, c.decay, a.momentum, (float)(a.scalars->slot[a.lr_slot] * c.lr_factor), a.nesterov != 0};
  const uint32_t packs = ((uintptr_t)c.w | (uintptr_t)c.m | (uintptr_t)c.g) % 16 ? 0 : c.n / 4;
#pragma unroll 2
  for (uint32_t i = 4 * threadIdx.x; i < 4 * packs; i += 4 * 256) {
    Pack<float> w = load_pack(c.w + i), m = load_pack(c.m + i);
    const Pack<float> g = load_pack(c.g + i);
#pragma unroll
    for (int l = 0; l < 4; l++) rule.apply(w.v[l], m.v[l], g.v[l]);
    store_pack(c.m + i, m);
    store_pack(c.w + i, w);
  }
  for (uint32_t i = 4 * packs + threadIdx.x; i < c.n; i += 256) rule.apply(c.w[i], c.m[i], c.g[i]);
}
KERNEL_EXPORT(opt_sgd)
