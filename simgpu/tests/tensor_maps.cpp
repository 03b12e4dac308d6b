// Limits of tensor maps.
#include "check.h"

extern "C" {
int cuTensorMapEncodeTiled(void *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *, const uint32_t *, int, int, int, int);
int cuTensorMapEncodeIm2col(void *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const int *, const int *, uint32_t, uint32_t,
                            const uint32_t *, int, int, int, int);
}
constexpr int BF16 = 9, U8 = 0, SWIZZLE_128 = 3;

// An NHWC image batch of bf16, 64 channels; `change` spoils one thing.
struct Im2col {
  uint64_t dim[4] = {64, 56, 56, 8}, stride[3] = {128, 128 * 56, 128 * 56 * 56};
  int lower[2] = {-1, -1}, upper[2] = {-1, -1};
  uint32_t channels = 64, pixels = 128, element[4] = {1, 2, 2, 1};
  void *address = (void *)4096;
  template <class F> int with(F change) const {
    Im2col c = *this;
    change(c);
    alignas(64) char map[128];
    return cuTensorMapEncodeIm2col(map, BF16, 4, c.address, c.dim, c.stride, c.lower, c.upper, c.channels, c.pixels, c.element, 0, SWIZZLE_128, 0, 0);
  }
};
struct Tiled {
  uint64_t dim[2] = {512, 100}, stride[1] = {1024};
  uint32_t box[2] = {64, 128}, element[2] = {1, 1};
  int type = BF16, swizzle = SWIZZLE_128, fill = 0;
  unsigned offset = 0;
  template <class F> int with(F change) const {
    Tiled c = *this;
    change(c);
    alignas(64) char map[192];
    return cuTensorMapEncodeTiled(map + c.offset, c.type, 2, (void *)4096, c.dim, c.stride, c.box, c.element, 0, c.swizzle, 0, c.fill);
  }
};

int main() {
  const Im2col i;
  const Tiled t;
  OK(i.with([](Im2col &) {}));
  OK(i.with([](Im2col &c) { c.lower[0] = -128, c.pixels = 1024; }));
  OK(t.with([](Tiled &) {}));
  OK(t.with([](Tiled &c) { c.dim[1] = 1ull << 32; }));
  const int refused[] = {
      i.with([](Im2col &c) { c.address = (void *)4104; }),
      i.with([](Im2col &c) { c.stride[0] = 8; }),
      i.with([](Im2col &c) { c.stride[2] = 1ull << 40; }),
      i.with([](Im2col &c) { c.lower[0] = -129; }),
      i.with([](Im2col &c) { c.upper[1] = 128; }),
      i.with([](Im2col &c) { c.dim[1] = 1, c.lower[0] = 1; }),  // no pixel is left
      i.with([](Im2col &c) { c.channels = 72; }),                // 144 bytes are more than the swizzle's span
      i.with([](Im2col &c) { c.channels = 257; }),
      i.with([](Im2col &c) { c.channels = 4; }),  // 8 bytes
      i.with([](Im2col &c) { c.pixels = 1025; }),
      i.with([](Im2col &c) { c.element[1] = 9; }),
      i.with([](Im2col &c) { c.dim[3] = 0; }),
      t.with([](Tiled &c) { c.box[1] = 257; }),
      t.with([](Tiled &c) { c.box[0] = 0; }),
      t.with([](Tiled &c) { c.box[0] = 128; }),
      t.with([](Tiled &c) { c.offset = 16; }),
      t.with([](Tiled &c) { c.type = 13; }),
      t.with([](Tiled &c) { c.type = U8, c.fill = 1; }),  // NaN needs a float
      t.with([](Tiled &c) { c.swizzle = 4; }),
      t.with([](Tiled &c) { c.dim[0] = (1ull << 32) + 1; }),
  };
  for (const int result : refused) EQUAL(result, CUDA_ERROR_INVALID_VALUE);
}
