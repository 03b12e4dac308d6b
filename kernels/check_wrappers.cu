// check_wrappers: each wrapper of include/, alone, with its raw results: crates/cuda/tests/ops/wrappers.rs computes from the documented
// layouts what they must be, so that hardware and the stand-in are held to the same definition. Tests launch these; the program does
// not carry them.
//   input, output: u32 words, 16-byte aligned; each kernel says how many. One block. Speed does not matter.
// Sources: PTX ISA, ldmatrix, mma.m16n8k16 and mma.m16n8k8, cp.async, cvt, shfl.sync; CUDA C++ guide, warp vote.
#include "memory.cuh"
#include "ptx.cuh"

struct CheckWrappersArgs {
  const uint32_t *input;
  uint32_t *output;
  Divide divide;
  uint32_t n;
};
static_assert(sizeof(CheckWrappersArgs) == 32, "crates/cuda/tests/ops/wrappers.rs has the same");

// input: 32 rows of 8 16-bit elements. Lane l names row l ^ 5: rows may lie anywhere. output: [2][32][4], plain and transposed.
// 32 threads, 512 bytes.
extern "C" __global__ void __launch_bounds__(32) check_wrappers_ldmatrix(const __grid_constant__ CheckWrappersArgs a) {
  DYN_SHARED(uint32_t, rows);
  const uint32_t lane = threadIdx.x;
  for (uint32_t i = lane; i < 128; i += 32) rows[i] = a.input[i];
  __syncthreads();
  uint32_t plain[4], transposed[4];
  ldmatrix_x4(plain, &rows[4 * (lane ^ 5)]);
  ldmatrix_x4_trans(transposed, &rows[4 * (lane ^ 5)]);
  for (int i = 0; i < 4; i++) {
    a.output[4 * lane + i] = plain[i];
    a.output[128 + 4 * lane + i] = transposed[i];
  }
}
KERNEL_EXPORT(check_wrappers_ldmatrix)

// A tile of 2 x 3 products. input: 38 words a lane, fragments a[2][4], b[3][2], d[6][4]. output: d, 24 words a lane. 32 threads.
template <class Multiply> DEVICE void multiply(const CheckWrappersArgs &args, Multiply multiply) {
  const uint32_t lane = threadIdx.x;
  const uint32_t *from = args.input + 38 * lane;
  uint32_t a[2][4], b[3][2];
  float d[6][4];
#pragma unroll
  for (int i = 0; i < 8; i++) a[i / 4][i % 4] = from[i];
#pragma unroll
  for (int i = 0; i < 6; i++) b[i / 2][i % 2] = from[8 + i];
#pragma unroll
  for (int i = 0; i < 24; i++) d[i / 4][i % 4] = __uint_as_float(from[14 + i]);
  multiply(d, a, b);
#pragma unroll
  for (int i = 0; i < 24; i++) args.output[24 * lane + i] = __float_as_uint(d[i / 4][i % 4]);
}
struct MultiplyBf16 {
  DEVICE void operator()(float (&d)[6][4], const uint32_t (&a)[2][4], const uint32_t (&b)[3][2]) const { mma_tile_bf16<2, 3>(d, a, b); }
};
struct MultiplyTf32 {
  DEVICE void operator()(float (&d)[6][4], const uint32_t (&a)[2][4], const uint32_t (&b)[3][2]) const { mma_tile_tf32<2, 3>(d, a, b); }
};
extern "C" __global__ void __launch_bounds__(32) check_wrappers_mma_bf16(const __grid_constant__ CheckWrappersArgs a) {
  multiply(a, MultiplyBf16{});
}
KERNEL_EXPORT(check_wrappers_mma_bf16)
extern "C" __global__ void __launch_bounds__(32) check_wrappers_mma_tf32(const __grid_constant__ CheckWrappersArgs a) {
  multiply(a, MultiplyTf32{});
}
KERNEL_EXPORT(check_wrappers_mma_tf32)

// Three groups of copies, 16 bytes, 16 bytes, 8 and 4 bytes; the second and third copy zeros in every third thread. The first two are
// read while the third may be outstanding. input: 12 words a thread. output: 11 words a thread. 64 threads, 44 bytes each.
extern "C" __global__ void __launch_bounds__(64) check_wrappers_copies(const __grid_constant__ CheckWrappersArgs a) {
  DYN_SHARED(uint32_t, shared);
  const uint32_t t = threadIdx.x;
  const uint32_t *from = a.input + 12 * t;
  uint32_t *first = shared + 4 * t, *second = shared + 256 + 4 * t, *third = shared + 512 + t, *fourth = shared + 576 + 2 * t;
  for (uint32_t i = t; i < 704; i += 64) shared[i] = 0x5a5a5a5a;  // zeros must be written, not found
  __syncthreads();
  const bool valid = t % 3 != 0;
  cp_async_16(first, from, true);
  cp_async_commit();
  cp_async_16(second, from + 4, valid);
  cp_async_commit();
  cp_async_4(third, from + 9, valid);
  cp_async_8(fourth, from + 10, valid);
  cp_async_commit();
  cp_async_wait<1>();
  for (int i = 0; i < 4; i++) {
    a.output[11 * t + i] = first[i];
    a.output[11 * t + 4 + i] = second[i];
  }
  cp_async_wait<0>();
  a.output[11 * t + 8] = third[0];
  for (int i = 0; i < 2; i++) a.output[11 * t + 9 + i] = fourth[i];
}
KERNEL_EXPORT(check_wrappers_copies)

// input: n floats. output: [n][3], bits of to_bf16, of that as f32 again, of to_tf32. 256 threads.
extern "C" __global__ void __launch_bounds__(256) check_wrappers_round(const __grid_constant__ CheckWrappersArgs a) {
  for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) {
    const float x = __uint_as_float(a.input[i]);
    a.output[3 * i] = to_bf16(x).bits;
    a.output[3 * i + 1] = __float_as_uint(to_f32(to_bf16(x)));
    a.output[3 * i + 2] = to_tf32(x);
  }
}
KERNEL_EXPORT(check_wrappers_round)

// input: 32 words. output: 8 words a lane. 32 threads.
extern "C" __global__ void __launch_bounds__(32) check_wrappers_lanes(const __grid_constant__ CheckWrappersArgs a) {
  const uint32_t lane = threadIdx.x, all = 0xffffffffu, x = a.input[lane];
  uint32_t *to = a.output + 8 * lane;
  to[0] = __shfl_sync(all, x, (7 * lane + 3) % 32);
  to[1] = __shfl_xor_sync(all, x, 5);
  to[2] = __shfl_down_sync(all, x, 3);  // past the end: the lane's own
  to[3] = __shfl_up_sync(all, x, 2);
  to[4] = __float_as_uint(__shfl_xor_sync(all, __uint_as_float(x), 16));
  to[5] = __ballot_sync(all, x % 2 == 1);
  to[6] = __any_sync(all, x == a.input[31]) ? 1 : 0;
  to[7] = __all_sync(all, x != a.input[31]) ? 1 : 0;
}
KERNEL_EXPORT(check_wrappers_lanes)

// input: n words below 2^31. output: quotients by `divide`. 256 threads.
extern "C" __global__ void __launch_bounds__(256) check_wrappers_divide(const __grid_constant__ CheckWrappersArgs a) {
  for (uint32_t i = threadIdx.x; i < a.n; i += blockDim.x) a.output[i] = a.input[i] / a.divide;
}
KERNEL_EXPORT(check_wrappers_divide)
