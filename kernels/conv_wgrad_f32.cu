// conv_wgrad_f32: include/conv_wgrad.cuh in f32 multiply-adds; channels of a group are multiples of 4. Not measured on hardware.
#include "conv_wgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) conv_wgrad_f32_64x64(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<F32Math, 64, 64, true>(a);
}
KERNEL_EXPORT(conv_wgrad_f32_64x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_wgrad_f32_32x64(const __grid_constant__ ConvWgradArgs a) {
  conv_wgrad<F32Math, 32, 64, true>(a);
}
KERNEL_EXPORT(conv_wgrad_f32_32x64)
