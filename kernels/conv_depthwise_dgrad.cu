// conv_depthwise_dgrad: dx[n,h,w,c] = sum over r, s of dy[n,p,q,c] w[c,r,s] where h = p stride - pad + r, w = q stride - pad + s, plus add.
//
// dy NPQC, w [c,r,s], dx and add NHWC in T; add may be null. 16-byte aligned but for the _any kernels. Grid: pixels of dx x chunks of
// channels. Bytes: dy, w, add and dx once, neighbours from L1. Not measured on hardware.
#include "depthwise.cuh"

struct DepthwiseDgradArgs {
  const void *dy, *w, *add;
  void *dx;
  ConvProblem a;
  Divide by_hw, by_w, by_stride;
};
static_assert(sizeof(DepthwiseDgradArgs) == 208, "cuda/src/conv_depthwise.rs has the same");

template <class T, int LANES> DEVICE void dgrad(const DepthwiseDgradArgs &args) {
  using D = Depthwise<T, LANES>;
  DYN_SHARED(float, filters);
  const ConvProblem &a = args.a;
  D::load_filters(filters, (const T *)args.w, a.c, a.r * a.s);
  const uint32_t c = D::channel(), pixels = a.batch * a.h * a.w;
  if (c >= a.c) return;
  const float *filter = filters + D::chunk() * LANES;
  for (uint32_t pixel = blockIdx.x * D::ROWS + D::row(); pixel < pixels; pixel += gridDim.x * D::ROWS) {
    const uint32_t image = pixel / args.by_hw, rest = pixel - image * a.h * a.w, h = rest / args.by_w, w = rest - h * a.w;
    float sum[LANES] = {};
    for (uint32_t r = 0; r < a.r; r++) {
      const uint32_t up = h + a.pad - r, p = up / args.by_stride;  // a negative one is large
      if (h + a.pad < r || p * a.stride != up || p >= a.p) continue;
      for (uint32_t s = 0; s < a.s; s++) {
        const uint32_t left = w + a.pad - s, q = left / args.by_stride;
        if (w + a.pad < s || q * a.stride != left || q >= a.q) continue;
        float dy[LANES];
        read_chunk<T, D::VEC>((const T *)args.dy + ((size_t)(image * a.p + p) * a.q + q) * a.c + c, LANES, dy);
#pragma unroll
        for (int e = 0; e < LANES; e++) sum[e] = fmaf(dy[e], filter[(r * a.s + s) * D::CHANNELS + e], sum[e]);
      }
    }
    const size_t at = (size_t)pixel * a.c + c;
    if (args.add) {
      float add[LANES];
      read_chunk<T, D::VEC>((const T *)args.add + at, LANES, add);
#pragma unroll
      for (int e = 0; e < LANES; e++) sum[e] += add[e];
    }
    write_chunk<T, D::VEC>((T *)args.dx + at, LANES, sum);
  }
}

extern "C" __global__ void __launch_bounds__(256) conv_depthwise_dgrad_bf16(const __grid_constant__ DepthwiseDgradArgs a) { dgrad<bf16, 8>(a); }
KERNEL_EXPORT(conv_depthwise_dgrad_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_dgrad_f32(const __grid_constant__ DepthwiseDgradArgs a) { dgrad<float, 4>(a); }
KERNEL_EXPORT(conv_depthwise_dgrad_f32)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_dgrad_any_bf16(const __grid_constant__ DepthwiseDgradArgs a) { dgrad<bf16, 1>(a); }
KERNEL_EXPORT(conv_depthwise_dgrad_any_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_dgrad_any_f32(const __grid_constant__ DepthwiseDgradArgs a) { dgrad<float, 1>(a); }
KERNEL_EXPORT(conv_depthwise_dgrad_any_f32)
