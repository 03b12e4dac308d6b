// The two compilers of a kernel: nvcc, and g++ for the stand-in GPU. Everything that differs between them is here and in ptx.cuh.
//
// A kernel takes one argument struct by value, `const __grid_constant__ Args a`, and is followed by KERNEL_EXPORT(name).
// Dynamic shared memory comes from DYN_SHARED(T, name), 1024-byte aligned, its contents undefined (NaN on the stand-in).
#pragma once
#ifdef __CUDACC__
#include <stdint.h>
#define KERNEL_EXPORT(k)
#define DYN_SHARED(T, name)                                            \
  extern __shared__ __align__(1024) unsigned char shared_bytes_raw[]; \
  T *name = reinterpret_cast<T *>(shared_bytes_raw)
#else
#include "simgpu.h"
#endif

#define DEVICE __device__ __forceinline__

// A bf16 number: the upper half of an f32.
struct bf16 { uint16_t bits; };

DEVICE float to_f32(float x) { return x; }
DEVICE float to_f32(bf16 x) { return __uint_as_float((uint32_t)x.bits << 16); }

// Rounds to nearest even; a NaN stays one.
DEVICE bf16 to_bf16(float f) {
#ifdef __CUDACC__
  bf16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(f));
  return r;
#else
  const uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
#endif
}

// Two numbers rounded at once, `low` in the lower half: one instruction at full rate, where two single ones are slow.
DEVICE uint32_t to_bf16x2(float low, float high) {
#ifdef __CUDACC__
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return to_bf16(low).bits | (uint32_t)to_bf16(high).bits << 16;
#endif
}

// Rounds to tf32, ties away from zero, as the tensor core wants its operands.
DEVICE uint32_t to_tf32(float f) {
#ifdef __CUDACC__
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(f));
  return r;
#else
  const uint32_t u = __float_as_uint(f);
  if ((u & 0x7fffffff) > 0x7f800000) return 0x7fffffff;
  return (u + 0x1000) & 0xffffe000u;
#endif
}

template <class T> DEVICE T from_f32(float x);
template <> DEVICE float from_f32<float>(float x) { return x; }
template <> DEVICE bf16 from_f32<bf16>(float x) { return to_bf16(x); }
