// conv_wgrad_stem: include/conv_wgrad.cuh in bf16 for images whose pixels are 4 channels, the last of zeros: a pixel is a copy of 8 bytes.
// conv_wgrad_stem_sum: its sums, and those of images of 4 f32 channels, without the fourth channel.
//
//   conv_wgrad_stem_sum: dw[k, (r s), c] = sum over splits, in their order, of partial[split][k, (r s), c], c < 3. f32; partial
//   [splits][k,row]; dw [k,r,s,3], n elements, `row3` of them to a k. Bytes moved: 16/3 per split and element, 4 per element.
// Not measured on hardware.
#include "conv_wgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) conv_wgrad_stem_bf16_64x128(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<Bf16Math, 64, 128, true, STEM>(a);
}
KERNEL_EXPORT(conv_wgrad_stem_bf16_64x128)

extern "C" __global__ void __launch_bounds__(128, 3) conv_wgrad_stem_bf16_64x64(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<Bf16Math, 64, 64, true, STEM>(a);
}
KERNEL_EXPORT(conv_wgrad_stem_bf16_64x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_wgrad_stem_bf16_32x64(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<Bf16Math, 32, 64, true, STEM>(a);
}
KERNEL_EXPORT(conv_wgrad_stem_bf16_32x64)

struct StemSumArgs {
  const float *partial;
  float *dw;
  Divide by_row3;
  uint32_t row, filters, splits, n, pad;
};
static_assert(sizeof(StemSumArgs) == 48, "cuda/src/conv_stem.rs has the same");

extern "C" __global__ void __launch_bounds__(256) conv_wgrad_stem_sum(const __grid_constant__ StemSumArgs a) {
  const size_t split = (size_t)a.filters * a.row;
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t k = i / a.by_row3, at = i - k * a.by_row3.divisor, tap = at / 3, c = at - 3 * tap;
    const float *from = a.partial + (size_t)k * a.row + 4 * tap + c;
    float sum = from[0];
    for (uint32_t s = 1; s < a.splits; s++) sum += from[s * split];
    a.dw[i] = sum;
  }
}
KERNEL_EXPORT(conv_wgrad_stem_sum)
