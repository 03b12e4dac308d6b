// conv_fprop_f32: include/conv_fprop.cuh in f32 multiply-adds; channels of a group are multiples of 4. Not measured on hardware.
#include "conv_fprop.cuh"

extern "C" __global__ void __launch_bounds__(128, 3) conv_fprop_f32_128x64(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<F32Math, 128, 64, true>(a);
}
KERNEL_EXPORT(conv_fprop_f32_128x64)

extern "C" __global__ void __launch_bounds__(128, 3) conv_fprop_f32_64x32(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<F32Math, 64, 32, true>(a);
}
KERNEL_EXPORT(conv_fprop_f32_64x32)
