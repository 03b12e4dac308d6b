// conv_dgrad_any: include/conv_dgrad.cuh element by element, for channels that come in no whole 16-byte chunks. Not measured on hardware.
#include "conv_dgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) conv_dgrad_any_bf16(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Bf16Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_dgrad_any_bf16)

extern "C" __global__ void __launch_bounds__(128, 2) conv_dgrad_any_tf32(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Tf32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_dgrad_any_tf32)

extern "C" __global__ void __launch_bounds__(128, 2) conv_dgrad_any_f32(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<F32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_dgrad_any_f32)
