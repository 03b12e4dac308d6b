// elementwise: one value per element, no neighbour read. graph::Op Unary, UnaryGrad, Binary, Scale, Accumulate and copies between dtypes.
//
//   a [, b] -> y, all of n elements, each operand f32 or bf16, any alignment of n; pointers 16-byte aligned.
// Bytes moved: each operand once. Not measured on hardware.
#include "memory.cuh"
#include "step.cuh"

enum ElementwiseOp : uint32_t {
  RELU, RELU6, SIGMOID,                 // y = f(a)
  RELU_GRAD, RELU6_GRAD, SIGMOID_GRAD,  // a = dy, b = f(x): y = dx
  ADD, SUB, MUL,                        // y = a op b
  SCALE, COPY,                          // y = weight a; y = a
};

struct ElementwiseArgs {
  Operand a, b, y;
  Weight weight;
  const Scalars *scalars;
  uint32_t n, op;
};
static_assert(sizeof(ElementwiseArgs) == 80, "cuda/src/elementwise.rs asserts the same");

DEVICE float elementwise(uint32_t op, float a, float b, float weight) {
  switch (op) {
    case RELU: return a < 0.f ? 0.f : a;  // a NaN passes
    case RELU6: return a > 6.f ? 6.f : (a < 0.f ? 0.f : a);
    case SIGMOID: return 1.f / (1.f + expf(-a));
    case RELU_GRAD: return b > 0.f ? a : 0.f;
    case RELU6_GRAD: return b > 0.f && b < 6.f ? a : 0.f;
    case SIGMOID_GRAD: return a * b * (1.f - b);
    case ADD: return a + b;
    case SUB: return a - b;
    case MUL: return a * b;
    case SCALE: return weight * a;
    default: return a;
  }
}

template <class T> DEVICE void read_pack(const Operand &x, uint32_t i, float (&v)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k += Pack<T>::LANES) {
    const Pack<T> p = load_pack((const T *)x.p + i + k);
#pragma unroll
    for (int l = 0; l < Pack<T>::LANES; l++) v[k + l] = to_f32(p.v[l]);
  }
}
template <class T> DEVICE void write_pack(const Operand &x, uint32_t i, const float (&v)[8]) {
#pragma unroll
  for (int k = 0; k < 8; k += Pack<T>::LANES) {
    Pack<T> p;
#pragma unroll
    for (int l = 0; l < Pack<T>::LANES; l++) p.v[l] = from_f32<T>(v[k + l]);
    store_pack((T *)x.p + i + k, p);
  }
}
DEVICE void read8(const Operand &x, uint32_t i, float (&v)[8]) {
  if (x.type == BFLOAT16) read_pack<bf16>(x, i, v);
  else read_pack<float>(x, i, v);
}

// 8 elements a thread, the tail one by one.
extern "C" __global__ void __launch_bounds__(256) elementwise_map(const __grid_constant__ ElementwiseArgs a) {
  const float weight = a.op == SCALE ? (float)value(a.weight, a.scalars) : 1.f;
  const bool binary = a.b.p != nullptr;
  for (uint32_t i = 8 * thread_in_grid(); i < a.n; i += 8 * threads_in_grid()) {
    if (i + 8 <= a.n) {
      float x[8], other[8] = {};
      read8(a.a, i, x);
      if (binary) read8(a.b, i, other);
#pragma unroll
      for (int k = 0; k < 8; k++) x[k] = elementwise(a.op, x[k], other[k], weight);
      if (a.y.type == BFLOAT16) write_pack<bf16>(a.y, i, x);
      else write_pack<float>(a.y, i, x);
    } else {
      for (uint32_t k = i; k < a.n; k++) set(a.y, k, elementwise(a.op, get(a.a, k), binary ? get(a.b, k) : 0.f, weight));
    }
  }
}
KERNEL_EXPORT(elementwise_map)
