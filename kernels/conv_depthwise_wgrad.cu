// conv_depthwise_wgrad: dw[c,r,s] = sum over n, p, q of dy[n,p,q,c] x[n, p stride - pad + r, q stride - pad + s, c], f32.
//
// dy NPQC, x NHWC in T, 16-byte aligned but for the _any kernels; at most 8 filter columns. A block sums one run of `share` pixels for one
// filter row r; its threads' sums are added in the order of their rows. Partial sums f32 [split][c r s], added by conv_wgrad_sum.
// Grid: splits x chunks of channels x filter rows. Bytes: dy and x once a filter row, mostly from L2. Not measured on hardware.
#include "depthwise.cuh"

struct DepthwiseWgradArgs {
  const void *dy, *x;
  float *dw;
  ConvProblem a;
  uint32_t share;
};
static_assert(sizeof(DepthwiseWgradArgs) == 168, "cuda/src/conv_depthwise.rs has the same");
constexpr int FILTER_COLUMNS = 8;

template <class T, int LANES> DEVICE void wgrad(const DepthwiseWgradArgs &args) {
  using D = Depthwise<T, LANES>;
  DYN_SHARED(float, shared);  // [rows][channels]
  const ConvProblem &a = args.a;
  const uint32_t c = D::channel(), r = blockIdx.z, begin = blockIdx.x * args.share, end = min(begin + args.share, a.pixels);
  float sum[FILTER_COLUMNS][LANES] = {};
  for (uint32_t pixel = begin + D::row(); pixel < end && c < a.c; pixel += D::ROWS) {
    const uint32_t image = pixel / a.by_pq, rest = pixel - image * a.p * a.q, p = rest / a.by_q, q = rest - p * a.q;
    const int h = (int)(p * a.stride + r) - (int)a.pad, w0 = (int)(q * a.stride) - (int)a.pad;
    if ((unsigned)h >= a.h) continue;
    float dy[LANES];
    read_chunk<T, D::VEC>((const T *)args.dy + (size_t)pixel * a.c + c, LANES, dy);
    const T *row = (const T *)args.x + (size_t)(image * a.h + h) * a.w * a.c + c;
#pragma unroll
    for (int s = 0; s < FILTER_COLUMNS; s++) {
      const int w = w0 + s;
      if (s >= (int)a.s || (unsigned)w >= a.w) continue;
      float x[LANES];
      read_chunk<T, D::VEC>(row + (size_t)w * a.c, LANES, x);
#pragma unroll
      for (int e = 0; e < LANES; e++) sum[s][e] = fmaf(dy[e], x[e], sum[s][e]);
    }
  }
  const uint32_t taps = a.r * a.s;
  float *dw = args.dw + (size_t)blockIdx.x * a.c * taps;
#pragma unroll
  for (int s = 0; s < FILTER_COLUMNS; s++) {
    if (s >= (int)a.s) break;
    __syncthreads();
#pragma unroll
    for (int e = 0; e < LANES; e++) shared[D::row() * D::CHANNELS + D::chunk() * LANES + e] = sum[s][e];
    __syncthreads();
    const uint32_t channel = blockIdx.y * D::CHANNELS + threadIdx.x;
    if (threadIdx.x < D::CHANNELS && channel < a.c) {
      float total = shared[threadIdx.x];
      for (int i = 1; i < D::ROWS; i++) total += shared[i * D::CHANNELS + threadIdx.x];
      dw[(size_t)channel * taps + r * a.s + s] = total;
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) conv_depthwise_wgrad_bf16(const __grid_constant__ DepthwiseWgradArgs a) { wgrad<bf16, 8>(a); }
KERNEL_EXPORT(conv_depthwise_wgrad_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_wgrad_f32(const __grid_constant__ DepthwiseWgradArgs a) { wgrad<float, 4>(a); }
KERNEL_EXPORT(conv_depthwise_wgrad_f32)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_wgrad_any_bf16(const __grid_constant__ DepthwiseWgradArgs a) { wgrad<bf16, 1>(a); }
KERNEL_EXPORT(conv_depthwise_wgrad_any_bf16)
extern "C" __global__ void __launch_bounds__(256) conv_depthwise_wgrad_any_f32(const __grid_constant__ DepthwiseWgradArgs a) { wgrad<float, 1>(a); }
KERNEL_EXPORT(conv_depthwise_wgrad_any_f32)
