// What the pooling kernels share: windows, and the channels of a thread. NHWC; a thread has some channels of one pixel, of the output
// forward and of the image backward.
#pragma once
#include "eight.cuh"

struct PoolArgs {
  Operand image, output;  // [n, h, w, c], [n, p, q, c]: x and y, or dx and dy
  uint8_t *argmax;        // [n, p, q, c], of a maximum
  Divide packs, columns, rows;  // of a thread's number: packs of a pixel, then pixels of a row and rows of an image
  Divide stride;
  uint32_t threads, h, w, p, q, c, kernel, pad;
  float scale;  // of an average: 1 / window
  uint32_t pad_bytes;
};
static_assert(sizeof(PoolArgs) == 128, "cuda/src/pool.rs asserts the same");

// A thread's channels: eight, or one of `Any`.
template <class T> struct Channels {
  static constexpr int N = 8;
  Eight<T> v;
  DEVICE void load(const Operand &x, size_t at) { load8(v, x, at); }
  DEVICE float operator[](int j) const { return v[j]; }
  static DEVICE void store(const Operand &y, size_t at, const float (&v)[N]) { Store8<T>::to(y, at, v); }
};
template <> struct Channels<Any> {
  static constexpr int N = 1;
  float v;
  DEVICE void load(const Operand &x, size_t at) { v = get(x, at); }
  DEVICE float operator[](int) const { return v; }
  static DEVICE void store(const Operand &y, size_t at, const float (&v)[N]) { set(y, at, v[0]); }
};

// Thread t's place: image, row, column, first channel.
struct PoolPlace {
  uint32_t n, row, column, channel;
};
template <class T> DEVICE PoolPlace pool_place(const PoolArgs &a, uint32_t t) {
  const uint32_t pixel = t / a.packs, line = pixel / a.columns, n = line / a.rows;
  return {n, line - n * a.rows.divisor, pixel - line * a.columns.divisor, (t - pixel * a.packs.divisor) * Channels<T>::N};
}

struct PoolSpan {
  int begin, end;
};
// Taps of window `at` that lie inside an axis of `size` pixels.
DEVICE PoolSpan pool_taps(const PoolArgs &a, uint32_t at, uint32_t size) {
  const int first = (int)(at * a.stride.divisor) - (int)a.pad;
  return {max(0, -first), min((int)a.kernel, (int)size - first)};
}
// Windows, of `count`, that cover pixel `at`.
DEVICE PoolSpan pool_windows(const PoolArgs &a, uint32_t at, uint32_t count) {
  const uint32_t from = at + a.pad;
  return {from < a.kernel ? 0 : (int)((from - a.kernel) / a.stride) + 1, (int)min(count, from / a.stride + 1)};
}
DEVICE size_t pool_at(uint32_t n, uint32_t h, uint32_t w, uint32_t c, int row, int column, uint32_t channel) {
  return ((size_t)(n * h + (uint32_t)row) * w + (uint32_t)column) * c + channel;
}
