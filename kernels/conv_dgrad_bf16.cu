// conv_dgrad_bf16: include/conv_dgrad.cuh in bf16 on tensor cores, f32 accumulation; channels of a group are multiples of 8. Not measured on hardware.
#include "conv_dgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) conv_dgrad_bf16_128x128(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Bf16Math, 128, 128, true>(a);
}
KERNEL_EXPORT(conv_dgrad_bf16_128x128)

extern "C" __global__ void __launch_bounds__(128, 3) conv_dgrad_bf16_128x64(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Bf16Math, 128, 64, true>(a);
}
KERNEL_EXPORT(conv_dgrad_bf16_128x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_dgrad_bf16_64x64(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Bf16Math, 64, 64, true>(a);
}
KERNEL_EXPORT(conv_dgrad_bf16_64x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_dgrad_bf16_64x32(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Bf16Math, 64, 32, true>(a);
}
KERNEL_EXPORT(conv_dgrad_bf16_64x32)
