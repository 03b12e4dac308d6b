// conv_depthwise_fprop: y[n,p,q,c] = act(sum over r, s of x[n, p stride - pad + r, q stride - pad + s, c] w[c,r,s] + bias[c] + add[n,p,q,c]).
//
// x NHWC, w [c,r,s], y and add NPQC in T; bias f32[c]; bias and add may be null. 16-byte aligned but for the _any kernels.
// Grid: pixels x chunks of channels. Bytes: x, w, add and y once, neighbours from L1. Not measured on hardware.
#include "depthwise.cuh"

struct DepthwiseFpropArgs {
  const void *x, *w, *add;
  const float *bias;
  void *y;
  ConvProblem a;
  uint32_t relu;
};
static_assert(sizeof(DepthwiseFpropArgs) == 184, "cuda/src/conv_depthwise.rs has the same");

template <class T, int LANES> DEVICE void fprop(const DepthwiseFpropArgs &args) {
  using D = Depthwise<T, LANES>;
  DYN_SHARED(float, filters);
  const ConvProblem &a = args.a;
  D::load_filters(filters, (const T *)args.w, a.c, a.r * a.s);
  const uint32_t c = D::channel();
  if (c >= a.c) return;
  const float *filter = filters + D::chunk() * LANES;
  for (uint32_t pixel = blockIdx.x * D::ROWS + D::row(); pixel < a.pixels; pixel += gridDim.x * D::ROWS) {
    const uint32_t image = pixel / a.by_pq, rest = pixel - image * a.p * a.q, p = rest / a.by_q, q = rest - p * a.q;
    const int h0 = (int)(p * a.stride) - (int)a.pad, w0 = (int)(q * a.stride) - (int)a.pad;
    float sum[LANES] = {};
    for (int r = 0; r < (int)a.r; r++) {
      for (int s = 0; s < (int)a.s; s++) {
        const int h = h0 + r, w = w0 + s;
        if ((unsigned)h >= a.h || (unsigned)w >= a.w) continue;
        float x[LANES];
        read_chunk<T, D::VEC>((const T *)args.x + ((size_t)(image * a.h + h) * a.w + w) * a.c + c, LANES, x);
#pragma unroll
        for (int e = 0; e < LANES; e++) sum[e] = fmaf(x[e], filter[(r * a.s + s) * D::CHANNELS + e], sum[e]);
      }
    }
    const size_t at = (size_t)pixel * a.c + c;
    if (args.bias) {
#pragma unroll
      for (int e = 0; e < LANES; e++) sum[e] += args.bias[c + e];
    }
    if (args.add) {
      float add[LANES];
      read_chunk<T, D::VEC>((const T *)args.add + at, LANES, add);
#pragma unroll
      for (int e = 0; e < LANES; e++) sum[e] += add[e];
    }
    if (args.relu) {
#pragma unroll
      for (int e = 0; e < LANES; e++) sum[e] = sum[e] < 0.f ? 0.f : sum[e];
    }
    write_chunk<T, D::VEC>((T *)args.y + at, LANES, sum);
  }
}

extern "C" __global__ void __launch_bounds__(256) conv_depthwise_fprop_bf16(const __grid_constant__ DepthwiseFpropArgs a) { fprop<bf16, 8>(a); }
KERNEL_EXPORT(conv_depthwise_fprop_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_fprop_f32(const __grid_constant__ DepthwiseFpropArgs a) { fprop<float, 4>(a); }
KERNEL_EXPORT(conv_depthwise_fprop_f32)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_fprop_any_bf16(const __grid_constant__ DepthwiseFpropArgs a) { fprop<bf16, 1>(a); }
KERNEL_EXPORT(conv_depthwise_fprop_any_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_fprop_any_f32(const __grid_constant__ DepthwiseFpropArgs a) { fprop<float, 1>(a); }
KERNEL_EXPORT(conv_depthwise_fprop_any_f32)
