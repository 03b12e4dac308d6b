// image_swap: patches exchanged within pairs of images. graph::Op PatchSwap, its own inverse.
//
//   y[i,h,w,:] = x[mask[i mod pairs, cell of (h,w)] ? partner of i : i, h, w, :]
// x, y: [2 pairs,h,w,c] of any element, in units of 16, 4 or 2 bytes that divide a row and a cell's row and to which x and y are
// aligned; mask: u8 [pairs,cells]. Bytes moved: each element read and written once. Not measured on hardware.
#include "cells.cuh"

struct ImageSwapArgs {
  const void *x;
  void *y;
  Cells swap;
  Divide units, rows;  // units of a row, rows of an image
  uint32_t n, pad;     // units in all
};
static_assert(sizeof(ImageSwapArgs) == 96, "cuda/src/image.rs asserts the same");

template <class Unit> DEVICE void image_swap(const ImageSwapArgs &a) {
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t line = i / a.units, unit = i - line * a.units.divisor;
    const uint32_t image = line / a.rows, row = line - image * a.rows.divisor;
    const size_t from = (size_t)source_image(a.swap, image, row, unit) * a.rows.divisor + row;
    ((Unit *)a.y)[i] = ((const Unit *)a.x)[from * a.units.divisor + unit];
  }
}

extern "C" __global__ void __launch_bounds__(256) image_swap_16(const __grid_constant__ ImageSwapArgs a) { image_swap<uint4>(a); }
KERNEL_EXPORT(image_swap_16)
extern "C" __global__ void __launch_bounds__(256) image_swap_4(const __grid_constant__ ImageSwapArgs a) { image_swap<uint32_t>(a); }
KERNEL_EXPORT(image_swap_4)
extern "C" __global__ void __launch_bounds__(256) image_swap_2(const __grid_constant__ ImageSwapArgs a) { image_swap<uint16_t>(a); }
KERNEL_EXPORT(image_swap_2)
