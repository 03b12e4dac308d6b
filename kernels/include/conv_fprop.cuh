// conv_fprop: y[n,p,q,k] = act(sum over r, s, c of x[n, p stride - pad + r, q stride - pad + s, c] w[k,r,s,c] + bias[k] + add[n,p,q,k]).
//
// GEMM of [n p q] x [r s c] by [r s c] x [k]. x NHWC, w KRSC, y and add NPQK in the arithmetic's type; bias f32[k]; bias and add may be
// null. 16-byte aligned where VEC. Grid: (tiles of k fastest, then of pixels) x runs of the batch x groups.
// With `mean` and `m2`, f32 [run][tile of pixels][k]: moments of the stored y per tile; a run has statistics of its own, and the addend
// goes to the sums in registers before them, in place of the stores.
// Bytes: x once per tile column that L2 does not hold, w, add and y once.
#pragma once
#include "conv.cuh"

struct ConvFpropArgs {
  const void *x, *w, *add;
  const float *bias;
  void *y;
  float *mean, *m2;
  ConvProblem a;
  Divide by_tiles;  // tiles of k
  uint32_t relu;
  uint32_t run;     // pixels of a run
  uint32_t tiles;   // tiles of pixels of a run
  uint32_t pad;
};
static_assert(sizeof(ConvFpropArgs) == 224, "cuda/src/conv.rs has the same");

template <class Math, int BM, int BN, bool VEC, int PIECE = PIECE_OF<typename Math::T, VEC>> DEVICE void conv_fprop(const ConvFpropArgs &args) {
  using T = typename Math::T;
  using G = Gemm<Math, BM, BN, Along::K, Along::K>;
  DYN_SHARED(T, shared);
  const ConvProblem &a = args.a;
  const uint32_t tile = blockIdx.x / args.by_tiles, first_k = (blockIdx.x - tile * args.by_tiles.divisor) * BN, group = blockIdx.z;
  const uint32_t first_pixel = blockIdx.y * args.run + tile * BM, end = min((blockIdx.y + 1) * args.run, a.pixels);

  Patches<T, BM, G::BK, PIECE> x;
  x.start();
  x.anywhere = (const T *)args.x;
  x.height = a.h, x.width = a.w, x.stride = a.c, x.group = a.cg, x.taps = a.r * a.s, x.taps_w = a.s, x.direction = 1;
  x.by_group = a.by_cg, x.by_taps_w = a.by_s;
#pragma unroll
  for (int i = 0; i < x.COUNT; i++) {
    const uint32_t pixel = first_pixel + x.row(i), image = pixel / a.by_pq, rest = pixel - image * a.p * a.q;
    const uint32_t p = rest / a.by_q, q = rest - p * a.q;
    const int h = (int)(p * a.stride) - (int)a.pad, w = (int)(q * a.stride) - (int)a.pad;
    const int64_t at = ((int64_t)image * a.h + h) * a.w + w;
    x.place(i, (const T *)args.x + at * a.c + group * a.cg, h, w, pixel < end);
  }
  const uint32_t taps = row_length<T, VEC>(a.r * a.s * a.cg), first_filter = group * a.kg + first_k;
  DenseRows<T, BN, G::BK, VEC> w((const T *)args.w + (size_t)first_filter * taps, (int)a.kg - (int)first_k, taps);

  G gemm(shared);
  gemm.run(x, w, (taps + G::BK - 1) / G::BK);
  if (args.mean) {
    const int rows = min((int)(end - first_pixel), BM);
    if (args.add) {
      gemm.add([&](int row, int column, float (&v)[G::V]) {
        const uint32_t pixel = first_pixel + row, k = first_k + column;
        if (pixel >= end || k >= a.kg) return;
        read_chunk<T, VEC>((const T *)args.add + (size_t)pixel * a.k + group * a.kg + k, a.kg - k, v);
      });
    }
    gemm.column_moments(rows, [&](int column, float mean, float m2) {
      const uint32_t k = first_k + column;
      if (k >= a.kg) return;
      const size_t at = (size_t)(blockIdx.y * args.tiles + tile) * a.k + group * a.kg + k;
      args.mean[at] = mean, args.m2[at] = m2;
    });
  }
  gemm.finish([&](int row, int column, float (&v)[G::V]) {
    const uint32_t pixel = first_pixel + row, k = first_k + column;
    if (pixel >= end || k >= a.kg) return;
    const int count = a.kg - k;
    const size_t at = (size_t)pixel * a.k + group * a.kg + k;
    if (args.bias) {
#pragma unroll
      for (int e = 0; e < G::V; e++) v[e] += e < count ? args.bias[group * a.kg + k + e] : 0.f;
    }
    if (args.add && !args.mean) {
      float add[G::V];
      read_chunk<T, VEC>((const T *)args.add + at, count, add);
#pragma unroll
      for (int e = 0; e < G::V; e++) v[e] += add[e];
    }
    if (args.relu) {
#pragma unroll
      for (int e = 0; e < G::V; e++) v[e] = v[e] < 0.f ? 0.f : v[e];
    }
    write_chunk<T, VEC>((T *)args.y + at, count, v);
  });
}
