// elementwise: one value per element, no neighbour read. graph::Op Unary, UnaryGrad, Binary, Scale, Accumulate and copies between dtypes.
//
//   a [, b] -> y, all of n elements, each operand f32 or bf16; any n. `packed`: all pointers are 16-byte aligned (rows of a batch need not be).
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
  uint32_t n, op, packed, pad;
};
static_assert(sizeof(ElementwiseArgs) == 88, "cuda/src/elementwise.rs asserts the same");

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

// 8 elements a thread, the tail one by one.
extern "C" __global__ void __launch_bounds__(256) elementwise_map(const __grid_constant__ ElementwiseArgs a) {
  const float weight = a.op == SCALE ? (float)value(a.weight, a.scalars) : 1.f;
  const bool binary = a.b.p != nullptr;
  for (uint32_t i = 8 * thread_in_grid(); i < a.n; i += 8 * threads_in_grid()) {
    if (a.packed && a.n - i >= 8) {
      float x[8], other[8] = {};
      read8(a.a, i, x);
      if (binary) read8(a.b, i, other);
#pragma unroll
      for (int k = 0; k < 8; k++) x[k] = elementwise(a.op, x[k], other[k], weight);
      write8(a.y, i, x);
    } else {
      for (uint32_t k = i; k < a.n && k < i + 8; k++) set(a.y, k, elementwise(a.op, get(a.a, k), binary ? get(a.b, k) : 0.f, weight));
    }
  }
}
KERNEL_EXPORT(elementwise_map)
