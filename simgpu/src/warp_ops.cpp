// Warp-wide operations that the last lane to arrive carries out for all: votes, ldmatrix, mma. Lane layouts are those of PTX.
#include "simgpu.h"

namespace simgpu {
namespace {
constexpr unsigned WARP = 32;
}

void vote_all(void **operands) {
  unsigned votes = 0;
  for (unsigned l = 0; l < WARP; l++)
    if (operands[l] && ((Vote *)operands[l])->in) votes |= 1u << l;
  for (unsigned l = 0; l < WARP; l++)
    if (operands[l]) ((Vote *)operands[l])->out = votes;
}

void ldmatrix_all(void **operands) {
  for (unsigned l = 0; l < WARP; l++) {
    auto *own = (Matrices *)operands[l];
    for (int i = 0; i < own->count; i++) {
      auto row = [&](unsigned r) { return ((Matrices *)operands[i * 8 + r])->row; };
      if (own->transposed) {
        auto element = [&](unsigned r) { return (uint32_t)((const uint16_t *)row(r))[l / 4]; };
        own->out[i] = element(l % 4 * 2) | element(l % 4 * 2 + 1) << 16;
      } else {
        own->out[i] = row(l / 4)[l % 4];
      }
    }
  }
}

namespace {
typedef float Lanes8 __attribute__((vector_size(32)));
template <int K> struct Fragments {
  alignas(64) float a[16][K], b[K][8], c[16][8];
  void product() {
    for (int i = 0; i < 16; i += 4) {
      Lanes8 sum[4];
      for (int u = 0; u < 4; u++) sum[u] = *(Lanes8 *)c[i + u];
      for (int k = 0; k < K; k++)
        for (int u = 0; u < 4; u++) sum[u] += a[i + u][k] * *(Lanes8 *)b[k];
      for (int u = 0; u < 4; u++) *(Lanes8 *)c[i + u] = sum[u];
    }
  }
};
float low(uint32_t r) { return __uint_as_float(r << 16); }
float high(uint32_t r) { return __uint_as_float(r & 0xffff0000u); }

template <int K, class Load> void mma_all(void **operands, Load load) {
  Fragments<K> f;
  const auto *first = (MmaTile *)operands[0];
  for (int i = 0; i < first->mt; i++) {
    for (int j = 0; j < first->nt; j++) {
      for (int l = 0; l < 32; l++) {
        const auto *t = (MmaTile *)operands[l];
        const float *d = t->d[i * t->nt + j];
        const int g = l / 4, q = l % 4;
        load(f, t->a[i], t->b[j], g, q);
        f.c[g][2 * q] = d[0], f.c[g][2 * q + 1] = d[1], f.c[g + 8][2 * q] = d[2], f.c[g + 8][2 * q + 1] = d[3];
      }
      f.product();
      for (int l = 0; l < 32; l++) {
        const auto *t = (MmaTile *)operands[l];
        float *d = t->d[i * t->nt + j];
        const int g = l / 4, q = l % 4;
        d[0] = f.c[g][2 * q], d[1] = f.c[g][2 * q + 1], d[2] = f.c[g + 8][2 * q], d[3] = f.c[g + 8][2 * q + 1];
      }
    }
  }
}
}  // namespace

void mma_bf16_all(void **operands) {
  mma_all<16>(operands, [](Fragments<16> &f, const uint32_t *a, const uint32_t *b, int g, int q) {
    for (int half = 0; half < 2; half++) {
      const int k = 8 * half + 2 * q;
      f.a[g][k] = low(a[2 * half]), f.a[g][k + 1] = high(a[2 * half]);
      f.a[g + 8][k] = low(a[2 * half + 1]), f.a[g + 8][k + 1] = high(a[2 * half + 1]);
      f.b[k][g] = low(b[half]), f.b[k + 1][g] = high(b[half]);
    }
  });
}

void mma_tf32_all(void **operands) {
  mma_all<8>(operands, [](Fragments<8> &f, const uint32_t *a, const uint32_t *b, int g, int q) {
    auto tf32 = [](uint32_t r) { return __uint_as_float(r & 0xffffe000u); };  // the unit reads 19 bits
    for (int half = 0; half < 2; half++) {
      f.a[g][q + 4 * half] = tf32(a[2 * half]);
      f.a[g + 8][q + 4 * half] = tf32(a[2 * half + 1]);
      f.b[q + 4 * half][g] = tf32(b[half]);
    }
  });
}
}  // namespace simgpu
