// Convolution as implicit GEMM: how activations and filters are read as matrices. Activations NHWC, filters KRSC, outputs NPQK.
//
// `VEC`: channels come in whole 16-byte chunks; else every element is fetched by itself (odd channels and groups). `PIECE`: elements of
// an image that are fetched at once. In f32 the 4 channels of a stem's image are a chunk; in bf16 they are half of one (`STEM`): a chunk
// holds two taps, and rows of filters and of their gradients are padded to whole chunks.
#pragma once
#include "gemm.cuh"

constexpr int STEM = 4;
template <class T, bool VEC> constexpr int PIECE_OF = VEC ? 16 / sizeof(T) : 1;
// Elements of a filter's row of `taps` (tap, channel) as kernels store it.
template <class T, bool VEC> DEVICE int row_length(int taps) {
  constexpr int V = PIECE_OF<T, VEC>;
  return (taps + V - 1) / V * V;
}
// Starts the copy of N elements, zeros where not `valid`; single ones are copied at once.
template <int N, class T> DEVICE void fetch(T *to, const T *from, const T *anywhere, bool valid) {
  if (N * sizeof(T) == 16) cp_async_16(to, valid ? from : anywhere, valid);
  else if (N * sizeof(T) == 8) cp_async_8(to, valid ? from : anywhere, valid);
  else *to = valid ? *from : from_f32<T>(0.f);
}

// One problem. Channels c and k are those of a whole tensor, cg and kg those of a group.
struct ConvProblem {
  uint32_t batch, h, w, c, p, q, k, r, s, stride, pad, cg, kg;
  uint32_t pixels;                           // batch p q
  Divide by_cg, by_kg, by_s, by_q, by_pq;
  Divide by_taps[2];                         // floor(s / stride) (at least 1) and ceil(s / stride)
};
static_assert(sizeof(ConvProblem) == 140, "cuda/src/conv.rs has the same");


// Rows are pixels, columns (tap, channel): pixel `row` at tap (i, j) reads the image at (h + i, w + j), or at (h - i, w - j) when
// the direction is -1. Zero outside the image.
template <class T, int ROWS, int BK, int PIECE> struct Patches {
  using Rows = Tile<T, ROWS, BK>;
  static constexpr int V = Rows::V, STEP = GEMM_THREADS / Rows::CHUNKS, COUNT = ROWS / STEP;
  const T *pixel[COUNT];  // of tap (0, 0), channel 0 of the group
  int h[COUNT], w[COUNT];
  const T *anywhere;  // a legal address for copies that fetch nothing
  int height, width, stride, group, taps, taps_w, direction;
  Divide by_group, by_taps_w;
  int chunk, k;

  DEVICE static int row(int i) { return (int)threadIdx.x / Rows::CHUNKS + i * STEP; }
  DEVICE void start() {
    chunk = threadIdx.x % Rows::CHUNKS;
    k = chunk * V;
  }
  // Row i of this thread; a row past the end of the problem is outside of every image.
  DEVICE void place(int i, const T *at, int h_, int w_, bool valid) {
    pixel[i] = at;
    h[i] = valid ? h_ : -(1 << 28);
    w[i] = w_;
  }
  DEVICE bool inside(int i, int dh, int dw) const {
    return (unsigned)(h[i] + dh) < (unsigned)height && (unsigned)(w[i] + dw) < (unsigned)width;
  }
  DEVICE void load(T *tile) {
#pragma unroll
    for (int e = 0; e < V; e += PIECE) {
      const int tap = (uint32_t)(k + e) / by_group, channel = k + e - tap * group, up = (uint32_t)tap / by_taps_w;
      const int dh = direction * up, dw = direction * (tap - up * taps_w), offset = (dh * width + dw) * stride + channel;
#pragma unroll
      for (int i = 0; i < COUNT; i++) {
        fetch<PIECE>(Rows::chunk(tile, row(i), chunk) + e, pixel[i] + offset, anywhere, tap < taps && inside(i, dh, dw));
      }
    }
    k += BK;
  }
};

// Rows of a dense matrix, contiguous along k: filters of fprop.
template <class T, int ROWS, int BK, bool VEC> struct DenseRows {
  using Rows = Tile<T, ROWS, BK>;
  static constexpr int V = Rows::V, STEP = GEMM_THREADS / Rows::CHUNKS, COUNT = (ROWS + STEP - 1) / STEP;
  const T *matrix;  // first row of the tile
  int rows, columns, k;

  DEVICE DenseRows(const T *matrix, int rows, int columns)
      : matrix(matrix), rows(rows), columns(columns), k((int)threadIdx.x % Rows::CHUNKS * V) {}
  DEVICE void load(T *tile) {
    const int chunk = threadIdx.x % Rows::CHUNKS;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = (int)threadIdx.x / Rows::CHUNKS + i * STEP;
      if (ROWS % STEP != 0 && row >= ROWS) break;
      T *to = Rows::chunk(tile, row, chunk);
      const T *from = matrix + (size_t)row * columns + k;
      if (VEC) {
        const bool valid = row < rows && k < columns;
        cp_async_16(to, valid ? from : matrix, valid);
      } else {
#pragma unroll
        for (int e = 0; e < V; e++) to[e] = row < rows && k + e < columns ? from[e] : from_f32<T>(0.f);
      }
    }
    k += BK;
  }
};

// Filters of dgrad: rows (tap, k), contiguous along the channels c of the group. Tap (i, j) is the filter's (r0 + stride i, s0 + stride j).
template <class T, int COLS, int BK, bool VEC> struct FilterColumns {
  using Rows = Tile<T, BK, COLS>;
  static constexpr int V = Rows::V, STEP = GEMM_THREADS / Rows::CHUNKS, COUNT = (BK + STEP - 1) / STEP;
  const T *filters;  // of the group, at the tile's first channel
  int columns, group, taps, taps_w, r0, s0, stride, r, s, cg;
  Divide by_group, by_taps_w;
  int k;  // of the tile's first row

  DEVICE void load(T *tile) {
    const int chunk = threadIdx.x % Rows::CHUNKS, column = chunk * V;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = (int)threadIdx.x / Rows::CHUNKS + i * STEP;
      if (BK % STEP != 0 && row >= BK) break;
      const int at = k + row, tap = (uint32_t)at / by_group, filter = at - tap * group, up = (uint32_t)tap / by_taps_w;
      const int fr = r0 + stride * up, fs = s0 + stride * (tap - up * taps_w);
      const T *from = filters + ((size_t)(filter * r + fr) * s + fs) * cg + column;
      T *to = Rows::chunk(tile, row, chunk);
      if (VEC) {
        const bool valid = tap < taps && column < columns;
        cp_async_16(to, valid ? from : filters, valid);
      } else {
#pragma unroll
        for (int e = 0; e < V; e++) to[e] = tap < taps && column + e < columns ? from[e] : from_f32<T>(0.f);
      }
    }
    k += BK;
  }
};

// Output gradients of wgrad: rows are pixels, contiguous along the channels k of the group.
template <class T, int COLS, int BK, bool VEC> struct PixelColumns {
  using Rows = Tile<T, BK, COLS>;
  static constexpr int V = Rows::V, STEP = GEMM_THREADS / Rows::CHUNKS, COUNT = (BK + STEP - 1) / STEP;
  const T *dy;  // of the group, at the tile's first channel
  int columns, stride;
  uint32_t pixel, end;

  DEVICE void load(T *tile) {
    const int chunk = threadIdx.x % Rows::CHUNKS, column = chunk * V;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = (int)threadIdx.x / Rows::CHUNKS + i * STEP;
      if (BK % STEP != 0 && row >= BK) break;
      const bool inside = pixel + row < end;
      const T *from = dy + (size_t)(pixel + row) * stride + column;
      T *to = Rows::chunk(tile, row, chunk);
      if (VEC) {
        const bool valid = inside && column < columns;
        cp_async_16(to, valid ? from : dy, valid);
      } else {
#pragma unroll
        for (int e = 0; e < V; e++) to[e] = inside && column + e < columns ? from[e] : from_f32<T>(0.f);
      }
    }
    pixel += BK;
  }
};

// Inputs of wgrad: rows are output pixels, columns (tap, channel), contiguous along the channels of the group.
template <class T, int COLS, int BK, int PIECE> struct PatchColumns {
  using Rows = Tile<T, BK, COLS>;
  static constexpr int V = Rows::V, STEP = GEMM_THREADS / Rows::CHUNKS, COUNT = (BK + STEP - 1) / STEP, TAPS = V / PIECE;
  const T *x;  // at channel 0 of the group
  const ConvProblem &a;
  int dh[TAPS], dw[TAPS], channel[TAPS];  // of each piece of the chunk; dh is far outside where there is none
  uint32_t pixel, end;

  DEVICE PatchColumns(const T *x, const ConvProblem &a, int first_column, uint32_t pixel, uint32_t end)
      : x(x), a(a), pixel(pixel), end(end) {
#pragma unroll
    for (int e = 0; e < TAPS; e++) {
      const uint32_t column = first_column + threadIdx.x % Rows::CHUNKS * V + e * PIECE, tap = column / a.by_cg, up = tap / a.by_s;
      const bool valid = column < a.r * a.s * a.cg;
      dh[e] = valid ? (int)up - (int)a.pad : -(1 << 28);
      dw[e] = (int)(tap - up * a.s) - (int)a.pad;
      channel[e] = column - tap * a.cg;
    }
  }
  DEVICE void load(T *tile) {
    const int chunk = threadIdx.x % Rows::CHUNKS;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
      const int row = (int)threadIdx.x / Rows::CHUNKS + i * STEP;
      if (BK % STEP != 0 && row >= BK) break;
      const uint32_t at = pixel + row, image = at / a.by_pq, rest = at - image * a.p * a.q, p = rest / a.by_q, q = rest - p * a.q;
      T *to = Rows::chunk(tile, row, chunk);
#pragma unroll
      for (int e = 0; e < TAPS; e++) {
        const int h = (int)(p * a.stride) + dh[e], w = (int)(q * a.stride) + dw[e];
        const bool valid = at < end && (unsigned)h < a.h && (unsigned)w < a.w;
        const T *from = x + ((size_t)(image * a.h + h) * a.w + w) * a.c + channel[e];
        fetch<PIECE>(to + e * PIECE, from, x, valid);
      }
    }
    pixel += BK;
  }
};

// Reads or writes V neighbouring elements, of which the first `count` exist.
template <class T, bool VEC, int V> DEVICE void read_chunk(const T *from, int count, float (&v)[V]) {
  if (VEC) {
    const Pack<T> pack = load_pack(from);
#pragma unroll
    for (int e = 0; e < V; e++) v[e] = to_f32(pack.v[e]);
  } else {
#pragma unroll
    for (int e = 0; e < V; e++) v[e] = e < count ? to_f32(from[e]) : 0.f;
  }
}
template <class T, bool VEC, int V> DEVICE void write_chunk(T *to, int count, const float (&v)[V]) {
  if (VEC && sizeof(T) == 2) {
    uint32_t pairs[4];
#pragma unroll
    for (int e = 0; e < 4; e++) pairs[e] = to_bf16x2(v[2 * e % V], v[(2 * e + 1) % V]);
    *reinterpret_cast<uint4 *>(to) = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  } else if (VEC) {
    Pack<T> pack;
#pragma unroll
    for (int e = 0; e < V; e++) pack.v[e] = from_f32<T>(v[e]);
    store_pack(to, pack);
  } else {
#pragma unroll
    for (int e = 0; e < V; e++)
      if (e < count) to[e] = from_f32<T>(v[e]);
  }
}
