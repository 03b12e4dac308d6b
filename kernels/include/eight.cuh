// Eight neighbouring elements at a time, of one dtype or of any; sums over the rows of a block of such threads.
#pragma once
#include "memory.cuh"

// `Any`: operands of any dtype and alignment.
struct Any {};
template <class T> struct Eight {
  static constexpr int LANES = Pack<T>::LANES, BYTES = sizeof(T);
  Pack<T> pack[8 / LANES];
  DEVICE float operator[](int j) const { return to_f32(pack[j / LANES].v[j % LANES]); }
};
template <> struct Eight<Any> {
  static constexpr int BYTES = 4;
  float v[8];
  DEVICE float operator[](int j) const { return v[j]; }
};
template <class T> DEVICE void load8(Eight<T> &to, const Operand &x, size_t at) {
#pragma unroll
  for (int k = 0; k < 8 / Eight<T>::LANES; k++) to.pack[k] = load_pack((const T *)x.p + at + k * Eight<T>::LANES);
}
DEVICE void load8(Eight<Any> &to, const Operand &x, size_t at) {
#pragma unroll
  for (int j = 0; j < 8; j++) to.v[j] = get(x, at + j);
}
template <class T> struct Store8 {
  static DEVICE void to(const Operand &y, size_t at, const float (&v)[8]) {
    constexpr int LANES = Pack<T>::LANES;
#pragma unroll
    for (int k = 0; k < 8; k += LANES) {
      Pack<T> pack;
#pragma unroll
      for (int l = 0; l < LANES; l++) pack.v[l] = from_f32<T>(v[k + l]);
      store_pack((T *)y.p + at + k, pack);
    }
  }
};
template <> struct Store8<Any> {
  static DEVICE void to(const Operand &y, size_t at, const float (&v)[8]) {
#pragma unroll
    for (int j = 0; j < 8; j++) set(y, at + j, v[j]);
  }
};

// A block of ROW_THREADS threads as rows of `packs` each; the last few may be left over, in a row that is none.
constexpr int ROW_THREADS = 256;
struct BlockRows {
  uint32_t packs, rows, row, lane;
};
DEVICE BlockRows block_rows(uint32_t packs) {
  const uint32_t row = threadIdx.x / packs;
  return {packs, ROW_THREADS / packs, row, threadIdx.x - row * packs};
}

// Sums over the rows, for every thread those of its own pack: a tree in shared memory.
DEVICE void sum_rows(float (&v)[8], const BlockRows &b, float (&scratch)[8][ROW_THREADS]) {
  const uint32_t t = threadIdx.x;
  __syncthreads();  // readers of the call before have read
#pragma unroll
  for (int j = 0; j < 8; j++) scratch[j][t] = v[j];
  uint32_t half = 1;
  while (2 * half < b.rows) half *= 2;
  for (; half > 0; half /= 2) {
    __syncthreads();
    if (b.row < half && b.row + half < b.rows) {
#pragma unroll
      for (int j = 0; j < 8; j++) scratch[j][t] += scratch[j][t + half * b.packs];
    }
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < 8; j++) v[j] = scratch[j][b.lane];
}
