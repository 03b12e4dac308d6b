// Wrappers of PTX instructions, two bodies each: PTX under nvcc, the stand-in's C++ under g++.
//
// Fragment layouts, l = lane, g = l / 4, q = l % 4:
//   C of m16n8:          d0 = C[g][2q], d1 = C[g][2q+1], d2 = C[g+8][2q], d3 = C[g+8][2q+1]
//   bf16 m16n8k16:       a0 = A[g][2q..], a1 = A[g+8][2q..], a2 = A[g][2q+8..], a3 = A[g+8][2q+8..]; b0 = B[2q..][g], b1 = B[2q+8..][g]
//   tf32 m16n8k8:        a0 = A[g][q], a1 = A[g+8][q], a2 = A[g][q+4], a3 = A[g+8][q+4]; b0 = B[q][g], b1 = B[q+4][g]
#pragma once
#include "target.cuh"

#ifdef __CUDACC__

DEVICE uint32_t shared_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// A warp's tile of products: d[i * NT + j] += a[i] b[j].
template <int MT, int NT>
DEVICE void mma_tile_bf16(float (&d)[MT * NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++) mma_bf16(d[i * NT + j], a[i], b[j]);
}
template <int MT, int NT>
DEVICE void mma_tile_tf32(float (&d)[MT * NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
#pragma unroll
  for (int i = 0; i < MT; i++)
#pragma unroll
    for (int j = 0; j < NT; j++) mma_tf32(d[i * NT + j], a[i], b[j]);
}
// Four 8x8 matrices of 16-bit elements: lanes 8i..8i+7 give the rows of matrix i; the lane gets two elements of each.
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
// Copies 16 bytes to shared memory, or zeros where not `valid`; both addresses 16-byte aligned. `from` must be a legal address.
DEVICE void cp_async_16(void *to, const void *from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
// As above, 8 and 4 bytes, by way of the first level of cache.
DEVICE void cp_async_8(void *to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(valid ? 8 : 0) : "memory");
}
DEVICE void cp_async_4(void *to, const void *from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(shared_address(to)), "l"(from), "r"(valid ? 4 : 0) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most N of this thread's groups are outstanding.
template <int N> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

#else

template <int MT, int NT>
inline void mma_tile_bf16(float (&d)[MT * NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
  simgpu::MmaTile tile{d, a, b, MT, NT};
  simgpu::collective(~0u, "mma.bf16", &tile, &simgpu::mma_bf16_all, SIMGPU_AT);
}
template <int MT, int NT>
inline void mma_tile_tf32(float (&d)[MT * NT][4], const uint32_t (&a)[MT][4], const uint32_t (&b)[NT][2]) {
  simgpu::MmaTile tile{d, a, b, MT, NT};
  simgpu::collective(~0u, "mma.tf32", &tile, &simgpu::mma_tf32_all, SIMGPU_AT);
}
#define ldmatrix_x4(r, row) simgpu::ldmatrix(r, row, 4, false, SIMGPU_AT)
#define ldmatrix_x4_trans(r, row) simgpu::ldmatrix(r, row, 4, true, SIMGPU_AT)
#define cp_async_16(to, from, valid) simgpu::async_copy(to, from, 16, valid, SIMGPU_AT)
#define cp_async_8(to, from, valid) simgpu::async_copy(to, from, 8, valid, SIMGPU_AT)
#define cp_async_4(to, from, valid) simgpu::async_copy(to, from, 4, valid, SIMGPU_AT)
inline void cp_async_commit() { simgpu::async_commit(); }
template <int N> inline void cp_async_wait() { simgpu::async_wait(N); }

#endif
