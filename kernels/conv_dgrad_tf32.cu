// conv_dgrad_tf32: include/conv_dgrad.cuh in f32 rounded to tf32, on tensor cores; channels of a group are multiples of 4. Not measured on hardware.
#include "conv_dgrad.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) conv_dgrad_tf32_128x64(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Tf32Math, 128, 64, true>(a);
}
KERNEL_EXPORT(conv_dgrad_tf32_128x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_dgrad_tf32_64x32(const __grid_constant__ ConvDgradArgs a) {
  conv_dgrad<Tf32Math, 64, 32, true>(a);
}
KERNEL_EXPORT(conv_dgrad_tf32_64x32)
