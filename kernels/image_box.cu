// image_box: a box of each image replaced, by another image's or by a value a channel. graph::Op PasteBox, EraseBoxes.
//
//   y[i,h,w,c] = (h,w) in box of i ? (permutation ? x[permutation[i],h,w,c] : fill[c]) : x[i,h,w,c]
// x, y: T [n,h,w,c]; boxes: i32 (top, left, bottom, right; the last two exclusive; may reach over the image), one for all or one an
// image; permutation: i32 [n] or null. Channels above the third are not filled. A unit is 16 bytes where w c is a multiple of that and
// x and y are 16-byte aligned, else one element. Bytes moved: x once, y once, the box twice. Not measured on hardware.
#include "lanes.cuh"
#include "memory.cuh"

struct ImageBoxArgs {
  const void *x;
  void *y;
  const int32_t *boxes, *permutation;
  Divide units, rows, channels;  // units of a row, rows of an image, channels
  float fill[3];
  uint32_t n, w, box_stride;     // units in all, columns, 4 or 0
  uint32_t pad;
};
static_assert(sizeof(ImageBoxArgs) == 96, "cuda/src/image.rs asserts the same");

DEVICE uint32_t clamped(int32_t x, uint32_t most) { return x < 0 ? 0 : min((uint32_t)x, most); }

template <class T, int LANES> DEVICE void image_box(const ImageBoxArgs &a) {
  const uint32_t channels = a.channels.divisor;
  const T *x = (const T *)a.x;
  for (uint32_t i = thread_in_grid(); i < a.n; i += threads_in_grid()) {
    const uint32_t line = i / a.units, unit = i - line * a.units.divisor;
    const uint32_t image = line / a.rows;
    const int32_t row = line - image * a.rows.divisor;
    const int32_t *box = a.boxes + (size_t)a.box_stride * image;
    const uint32_t first = LANES * unit, left = clamped(box[1], a.w) * channels, right = clamped(box[3], a.w) * channels;
    Lanes<T, LANES> v = load_lanes<LANES>(x + (size_t)LANES * i);
    if (row >= box[0] && row < box[2] && first < right && first + LANES > left) {
      Lanes<T, LANES> other = v;
      if (a.permutation) {
        const size_t from = (size_t)a.permutation[image] * a.rows.divisor + row;
        other = load_lanes<LANES>(x + LANES * (from * a.units.divisor + unit));
      } else {
        uint32_t channel = first - first / a.channels * channels;
#pragma unroll
        for (int k = 0; k < LANES; k++) {
          if (channel < 3) other.v[k] = from_f32<T>(channel == 0 ? a.fill[0] : channel == 1 ? a.fill[1] : a.fill[2]);
          if (++channel == channels) channel = 0;
        }
      }
#pragma unroll
      for (int k = 0; k < LANES; k++) {
        if (first + k >= left && first + k < right) v.v[k] = other.v[k];
      }
    }
    store_lanes((T *)a.y + (size_t)LANES * i, v);
  }
}

extern "C" __global__ void __launch_bounds__(256) image_box_f32(const __grid_constant__ ImageBoxArgs a) {
  image_box<float, LANES_OF<float>>(a);
}
KERNEL_EXPORT(image_box_f32)
extern "C" __global__ void __launch_bounds__(256) image_box_bf16(const __grid_constant__ ImageBoxArgs a) {
  image_box<bf16, LANES_OF<bf16>>(a);
}
KERNEL_EXPORT(image_box_bf16)
extern "C" __global__ void __launch_bounds__(256) image_box_f32_one(const __grid_constant__ ImageBoxArgs a) { image_box<float, 1>(a); }
KERNEL_EXPORT(image_box_f32_one)
extern "C" __global__ void __launch_bounds__(256) image_box_bf16_one(const __grid_constant__ ImageBoxArgs a) { image_box<bf16, 1>(a); }
KERNEL_EXPORT(image_box_bf16_one)
