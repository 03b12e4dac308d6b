// conv_wgrad_any: include/conv_wgrad.cuh element by element, for channels that come in no whole 16-byte chunks. Not measured on hardware.
#include "conv_wgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) conv_wgrad_any_bf16(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<Bf16Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_wgrad_any_bf16)

extern "C" __global__ void __launch_bounds__(128, 2) conv_wgrad_any_tf32(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<Tf32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_wgrad_any_tf32)

extern "C" __global__ void __launch_bounds__(128, 2) conv_wgrad_any_f32(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<F32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_wgrad_any_f32)
