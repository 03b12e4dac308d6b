// conv_dgrad: dx[n,h,w,c] = sum over r, s, k of dy[n,p,q,k] w[k,r,s,c] where h = p stride - pad + r, w = q stride - pad + s, plus add.
//
// Stride t makes t x t sub-problems, one per parity of (h, w): each is a GEMM of [n h' w'] x [taps k] by [taps k] x [c] over the taps
// r = (h + pad) mod t, + t, ...: no product with a zero is made. A sub-problem without taps stores zeros and the addend.
// dy NPQK, w KRSC, dx and add NHWC in the arithmetic's type; add may be null. Grid: (tiles of c fastest, then of pixels) x
// sub-problems x groups; blocks past the pixels of a smaller sub-problem end at once.
#pragma once
#include "conv.cuh"

struct ConvDgradArgs {
  const void *dy, *w, *add;
  void *dx;
  ConvProblem a;
  Divide by_tiles;  // tiles of c
};
static_assert(sizeof(ConvDgradArgs) == 184, "cuda/src/conv.rs has the same");

template <class Math, int BM, int BN, bool VEC> DEVICE void conv_dgrad(const ConvDgradArgs &args) {
  using T = typename Math::T;
  using G = Gemm<Math, BM, BN, Along::K, Along::MN>;
  DYN_SHARED(T, shared);
  const ConvProblem &a = args.a;
  const uint32_t tile = blockIdx.x / args.by_tiles, first_c = (blockIdx.x - tile * args.by_tiles.divisor) * BN, group = blockIdx.z;
  const uint32_t first_pixel = tile * BM, h0 = blockIdx.y / a.stride, w0 = blockIdx.y % a.stride;
  const uint32_t height = (a.h - h0 + a.stride - 1) / a.stride, width = (a.w - w0 + a.stride - 1) / a.stride;
  if (h0 >= a.h || w0 >= a.w || first_pixel >= a.batch * height * width) return;

  const uint32_t r0 = (h0 + a.pad) % a.stride, s0 = (w0 + a.pad) % a.stride;
  const uint32_t taps_h = r0 < a.r ? (a.r - r0 + a.stride - 1) / a.stride : 0, taps_w = s0 < a.s ? (a.s - s0 + a.stride - 1) / a.stride : 0;
  const Divide by_taps_w = a.by_taps[taps_w > a.s / a.stride];
  // Image and place of a pixel of the sub-problem.
  auto place = [&](uint32_t pixel, uint32_t &image, uint32_t &h, uint32_t &w) {
    image = pixel / (height * width);
    const uint32_t rest = pixel - image * height * width;
    h = rest / width, w = rest - h * width;
  };

  Patches<T, BM, G::BK, PIECE_OF<T, VEC>> dy;
  dy.start();
  dy.anywhere = (const T *)args.dy;
  dy.height = a.p, dy.width = a.q, dy.stride = a.k, dy.group = a.kg, dy.taps = taps_h * taps_w, dy.taps_w = taps_w, dy.direction = -1;
  dy.by_group = a.by_kg, dy.by_taps_w = by_taps_w;
#pragma unroll
  for (int i = 0; i < dy.COUNT; i++) {
    const uint32_t pixel = first_pixel + dy.row(i);
    uint32_t image, h, w;
    place(pixel, image, h, w);
    const int p = h + (h0 + a.pad - r0) / a.stride, q = w + (w0 + a.pad - s0) / a.stride;
    const int64_t at = ((int64_t)image * a.p + p) * a.q + q;
    dy.place(i, (const T *)args.dy + at * a.k + group * a.kg, p, q, image < a.batch);
  }
  const int left = (int)a.cg - (int)first_c;
  FilterColumns<T, BN, G::BK, VEC> w{(const T *)args.w + (size_t)group * a.kg * a.r * a.s * a.cg + first_c,
                                     left, (int)a.kg, dy.taps, (int)taps_w, (int)r0, (int)s0, (int)a.stride,
                                     (int)a.r, (int)a.s, (int)a.cg, a.by_kg, by_taps_w, 0};
  G gemm(shared);
  gemm.run(dy, w, (dy.taps * (int)a.kg + G::BK - 1) / G::BK);
  gemm.finish([&](int row, int column, float (&v)[G::V]) {
    const uint32_t c = first_c + column;
    uint32_t image, h, w;
    place(first_pixel + row, image, h, w);
    if (image >= a.batch || c >= a.cg) return;
    const int count = a.cg - c;
    const size_t pixel = ((size_t)image * a.h + h * a.stride + h0) * a.w + w * a.stride + w0, at = pixel * a.c + group * a.cg + c;
    if (args.add) {
      float add[G::V];
      read_chunk<T, VEC>((const T *)args.add + at, count, add);
#pragma unroll
      for (int e = 0; e < G::V; e++) v[e] += add[e];
    }
    write_chunk<T, VEC>((T *)args.dx + at, count, v);
  });
}
