// image_input: 8-bit pixels to the network's input in one pass. graph::Op ImageInput, ImageSwap.
//
//   image[i,p,q,c] = table[c][pixels[s, p + top, left + (flip ? ow - 1 - q : q), c]], zero pixels outside; s = i, or the partner of i
//   where the mask of a patch swap says so. top and left: crop[s] - pad, or the central crop. table[c][v] = (v / 255 - mean[c]) / std[c],
//   made by the host in the order of the CPU's op, so that f32 images have its bits. A channel past those of the pixels is zero.
// pixels: u8 [n,h,w,c], c <= 3; crop: i32 [n,2] or null; flip: i32 [n] or null; table: T [c][256]; image: T [n,oh,ow,c or c + 1]. Any alignment
// of pixels. A unit is 16 bytes of the image where its ow c (and cell c) are multiples of that and image is 16-byte aligned, else one element.
// Bytes moved: each pixel of the crop once, the image once. Not measured on hardware.
//
// Neighbouring threads read neighbouring bytes, which the first level of cache serves; the table lies in shared memory, because
// two exact divisions an element would cost more time than the memory.
#include "cells.cuh"
#include "lanes.cuh"

struct ImageInputArgs {
  const uint8_t *pixels;
  const int32_t *crop, *flip;
  const void *table;
  void *image;
  Cells swap;
  Divide units, rows, channels;  // units of an output row, output rows, channels
  uint32_t n, h, w, out_w;       // units of the image; size of the pixels
  int32_t origin[2];             // where the crop of an image starts, before its offset is added
  uint32_t pixel_channels;
};
static_assert(sizeof(ImageInputArgs) == 152, "cuda/src/image.rs asserts the same");

template <class T, int LANES> DEVICE void image_input(const ImageInputArgs &a) {
  __shared__ T table[3 * 256 + 1];  // and a zero for the channel that pixels lack
  const uint32_t channels = a.channels.divisor, pixel_channels = a.pixel_channels;
  for (uint32_t i = threadIdx.x; i < 256 * pixel_channels; i += blockDim.x) table[i] = ((const T *)a.table)[i];
  if (threadIdx.x == 0) table[256 * pixel_channels] = from_f32<T>(0.f);
  __syncthreads();
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t line = i / a.units, unit = i - line * a.units.divisor;
    uint32_t image = line / a.rows;
    const uint32_t row = line - image * a.rows.divisor;
    if (a.swap.mask) image = source_image(a.swap, image, row, unit);
    int32_t top = a.origin[0], left = a.origin[1];
    if (a.crop) {
      top += a.crop[2 * image];
      left += a.crop[2 * image + 1];
    }
    const bool flipped = a.flip && a.flip[image] != 0;
    const int32_t y = (int32_t)row + top, step = flipped ? -1 : 1;
    const uint32_t q = LANES * unit / a.channels;
    uint32_t channel = LANES * unit - q * channels;
    int32_t x = left + (int32_t)(flipped ? a.out_w - 1 - q : q);
    const uint32_t width = (uint32_t)y < a.h ? a.w : 0;  // a row outside has no pixels
    const uint8_t *source = a.pixels + ((size_t)image * a.h + (width ? y : 0)) * a.w * pixel_channels;
    uint32_t entry[LANES];  // all reads are on their way before the first is used; outside, a pixel inside is read and not used
#pragma unroll
    for (int k = 0; k < LANES; k++) {
      const bool inside = (uint32_t)x < width && channel < pixel_channels;
      const uint32_t pixel = __ldg(source + (inside ? x * pixel_channels + channel : 0));
      entry[k] = 256 * channel + (inside ? pixel : 0);
      if (++channel == channels) {
        channel = 0;
        x += step;
      }
    }
    Lanes<T, LANES> v;
#pragma unroll
    for (int k = 0; k < LANES; k++) v.v[k] = table[entry[k]];
    store_lanes((T *)a.image + (size_t)LANES * i, v);
  }
}

extern "C" __global__ void __launch_bounds__(256) image_input_f32(const __grid_constant__ ImageInputArgs a) {
  image_input<float, LANES_OF<float>>(a);
}
KERNEL_EXPORT(image_input_f32)
extern "C" __global__ void __launch_bounds__(256) image_input_bf16(const __grid_constant__ ImageInputArgs a) {
  image_input<bf16, LANES_OF<bf16>>(a);
}
KERNEL_EXPORT(image_input_bf16)
extern "C" __global__ void __launch_bounds__(256) image_input_f32_one(const __grid_constant__ ImageInputArgs a) {
  image_input<float, 1>(a);
}
KERNEL_EXPORT(image_input_f32_one)
extern "C" __global__ void __launch_bounds__(256) image_input_bf16_one(const __grid_constant__ ImageInputArgs a) {
  image_input<bf16, 1>(a);
}
KERNEL_EXPORT(image_input_bf16_one)
