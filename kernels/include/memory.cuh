// Reading and writing: packs of 16 bytes, operands whose dtype is a value, and where a thread is in its grid.
#pragma once
#include "target.cuh"

// 16 bytes of elements: 4 f32 or 8 bf16.
template <class T> struct alignas(16) Pack {
  static constexpr int LANES = 16 / sizeof(T);
  T v[LANES];
};
template <class T> DEVICE Pack<T> load_pack(const T *p) { return *reinterpret_cast<const Pack<T> *>(p); }
template <class T> DEVICE void store_pack(T *p, const Pack<T> &v) { *reinterpret_cast<Pack<T> *>(p) = v; }

// A float operand of ops that are too small to be compiled once per dtype.
enum FloatType : uint32_t { FLOAT32 = 0, BFLOAT16 = 1 };
struct Operand {
  void *p;
  uint32_t type;  // FloatType
  uint32_t pad;
};
static_assert(sizeof(Operand) == 16, "cuda/src/binding.rs has the same");
DEVICE float get(const Operand &x, size_t i) {
  return x.type == BFLOAT16 ? to_f32(((const bf16 *)x.p)[i]) : ((const float *)x.p)[i];
}
DEVICE void set(const Operand &x, size_t i, float v) {
  if (x.type == BFLOAT16) ((bf16 *)x.p)[i] = to_bf16(v);
  else ((float *)x.p)[i] = v;
}

// Eight neighbouring elements of a 16-byte aligned operand, i a multiple of 8.
template <class T> DEVICE void read_packs(const T *p, float (&v)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k += Pack<T>::LANES) {
    const Pack<T> pack = load_pack(p + k);
#pragma unroll
    for (int l = 0; l < Pack<T>::LANES; l++) v[k + l] = to_f32(pack.v[l]);
  }
}
template <class T> DEVICE void write_packs(T *p, const float (&v)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k += Pack<T>::LANES) {
    Pack<T> pack;
#pragma unroll
    for (int l = 0; l < Pack<T>::LANES; l++) pack.v[l] = from_f32<T>(v[k + l]);
    store_pack(p + k, pack);
  }
}
DEVICE void read8(const Operand &x, size_t i, float (&v)[8]) {
  if (x.type == BFLOAT16) read_packs((const bf16 *)x.p + i, v);
  else read_packs((const float *)x.p + i, v);
}
DEVICE void write8(const Operand &x, size_t i, const float (&v)[8]) {
  if (x.type == BFLOAT16) write_packs((bf16 *)x.p + i, v);
  else write_packs((float *)x.p + i, v);
}

// One-dimensional grids.
DEVICE uint32_t thread_in_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE uint32_t threads_in_grid() { return gridDim.x * blockDim.x; }

// Division by a number that the host knows: q = n / d for n < 2^31 as a multiplication and a shift. Made by `Divide::by` of cuda/src/binding.rs.
struct Divide {
  uint32_t divisor, multiplier, shift;
};
DEVICE uint32_t operator/(uint32_t n, const Divide &d) {
  return d.divisor == 1 ? n : __umulhi(n, d.multiplier) >> d.shift;
}
