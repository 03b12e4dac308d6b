// conv_fprop_any: include/conv_fprop.cuh element by element, for channels that come in no whole 16-byte chunks. Not measured on hardware.
#include "conv_fprop.cuh"

extern "C" __global__ void __launch_bounds__(128, 2) conv_fprop_any_bf16(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<Bf16Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_fprop_any_bf16)

extern "C" __global__ void __launch_bounds__(128, 2) conv_fprop_any_tf32(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<Tf32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_fprop_any_tf32)

extern "C" __global__ void __launch_bounds__(128, 2) conv_fprop_any_f32(const __grid_constant__ ConvFpropArgs a) {
  conv_fprop<F32Math, 64, 64, false>(a);
}
KERNEL_EXPORT(conv_fprop_any_f32)
