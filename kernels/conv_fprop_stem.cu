// conv_fprop_stem: include/conv_fprop.cuh in bf16 for images whose pixels are 4 channels, the last of zeros: a pixel is a copy of 8 bytes.
// conv_fprop_stem_filter: the filters for it, and for images of 4 f32 channels, which conv_fprop_tf32 and conv_fprop_f32 take.
//
//   conv_fprop_stem_filter: to[k, (r s), c] = c < 3 ? from[k, (r s), c] : 0, in the type of the arithmetic; rows of k, `taps` taps each,
//   are `row` elements long, zeros past their taps. from: [k,r,s,3]; to: [k,row], both f32 or bf16, n elements in all.
//   Bytes moved: 4 per element of `from`, 2 or 4 of `to`.
// Not measured on hardware.
#include "conv_fprop.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) conv_fprop_stem_bf16_128x64(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<Bf16Math, 128, 64, true, STEM>(a);
}
KERNEL_EXPORT(conv_fprop_stem_bf16_128x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_fprop_stem_bf16_64x64(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<Bf16Math, 64, 64, true, STEM>(a);
}
KERNEL_EXPORT(conv_fprop_stem_bf16_64x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_fprop_stem_bf16_64x32(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<Bf16Math, 64, 32, true, STEM>(a);
}
KERNEL_EXPORT(conv_fprop_stem_bf16_64x32)

struct StemFilterArgs {
  Operand from, to;
  Divide by_row;
  uint32_t taps, n, pad;
};
static_assert(sizeof(StemFilterArgs) == 56, "cuda/src/conv_stem.rs has the same");

extern "C" __global__ void __launch_bounds__(256) conv_fprop_stem_filter(const __grid_constant__ StemFilterArgs a) {
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t k = i / a.by_row, at = i - k * a.by_row.divisor, tap = at / 4, c = at % 4;
    set(a.to, i, tap < a.taps && c < 3 ? get(a.from, (k * a.taps + tap) * 3 + c) : 0.f);
  }
}
KERNEL_EXPORT(conv_fprop_stem_filter)
