// conv_wgrad: dw[k,r,s,c] = sum over n, p, q of dy[n,p,q,k] x[n, p stride - pad + r, q stride - pad + s, c], f32.
//
// GEMM of [k] x [n p q] by [n p q] x [r s c]. The output is small, the sum long: it is cut into `splits` runs of `share` pixels, each
// block sums one run of one tile; partial sums f32 [split][k r s c] (rows of k padded, see conv.cuh) are added by conv_wgrad_sum in the order of the splits.
// Grid: (tiles of k fastest, then of (tap, c)) x splits x groups.
#pragma once
#include "conv.cuh"

struct ConvWgradArgs {
  const void *dy, *x;
  float *dw;  // of one split: dw itself, or the partial sums
  ConvProblem a;
  Divide by_tiles;  // tiles of k
  uint32_t share;   // pixels of a split, a multiple of the k step
  uint32_t pad[3];
};
static_assert(sizeof(ConvWgradArgs) == 192, "cuda/src/conv.rs has the same");

template <class Math, int BM, int BN, bool VEC, int PIECE = PIECE_OF<typename Math::T, VEC>> DEVICE void conv_wgrad(const ConvWgradArgs &args) {
  using T = typename Math::T;
  using G = Gemm<Math, BM, BN, Along::MN, Along::MN>;
  DYN_SHARED(T, shared);
  const ConvProblem &a = args.a;
  const uint32_t tile = blockIdx.x / args.by_tiles, first_k = (blockIdx.x - tile * args.by_tiles.divisor) * BM, group = blockIdx.z;
  const uint32_t first_column = tile * BN, columns = row_length<T, VEC>(a.r * a.s * a.cg);
  const uint32_t begin = blockIdx.y * args.share, end = min(begin + args.share, a.pixels);

  PixelColumns<T, BM, G::BK, VEC> dy{(const T *)args.dy + group * a.kg + first_k, (int)a.kg - (int)first_k, (int)a.k, begin, end};
  PatchColumns<T, BN, G::BK, PIECE> x((const T *)args.x + group * a.cg, a, first_column, begin, end);
  G gemm(shared);
  gemm.run(dy, x, begin < end ? (end - begin + G::BK - 1) / G::BK : 0);
  float *dw = args.dw + ((size_t)blockIdx.y * a.k + group * a.kg) * columns;
  gemm.finish([&](int row, int column, float (&v)[G::V]) {
    const uint32_t k = first_k + row, at = first_column + column;
    if (k >= a.kg || at >= columns) return;
    float *to = dw + (size_t)k * columns + at;
    const int count = columns - at;
    if (VEC) {  // whole chunks of channels: 16-byte aligned
#pragma unroll
      for (int e = 0; e < G::V; e += 4) *reinterpret_cast<float4 *>(to + e) = make_float4(v[e], v[e + 1], v[e + 2], v[e + 3]);
    } else {
#pragma unroll
      for (int e = 0; e < G::V; e++)
        if (e < count) to[e] = v[e];
    }
  });
}
