// rows_move: rows put together from columns of other rows. graph::Op Concat, Slice, Unslice (channels), GatherRows, RollingRows.
//
//   to[r, c] = part that holds column c: from[s, c - begin], or zero where the part has no memory;
//   s = r, or index[r], or r + units before this micro-batch; rows s outside the source give zeros.
// All in units of 16, 4, 2 or 1 bytes that divide every address, width and beginning. Bytes moved: each unit of `to` read and
// written once. Not measured on hardware.
#include "memory.cuh"
#include "step.cuh"

struct Part {
  const void *from;        // null: zeros
  uint32_t begin, stride;  // its first column in `to`; units between rows of `from`
};
struct RowsMoveArgs {
  Part parts[4];           // ascending; unused ones begin at 2^32 - 1
  void *to;
  const int32_t *index;    // or null
  const Scalars *scalars;  // of a rolling state, else null
  Divide columns;          // units of a row that are written
  uint32_t stride, n, source_rows;
};
static_assert(sizeof(RowsMoveArgs) == 112, "cuda/src/rows.rs asserts the same");

template <class Unit> DEVICE Unit rows_move_unit(const RowsMoveArgs &a, uint32_t first, uint32_t row, uint32_t column) {
  const void *from = a.parts[0].from;
  uint32_t begin = a.parts[0].begin, stride = a.parts[0].stride;
#pragma unroll
  for (int k = 1; k < 4; k++) {
    if (column >= a.parts[k].begin) {
      from = a.parts[k].from;
      begin = a.parts[k].begin;
      stride = a.parts[k].stride;
    }
  }
  const uint32_t source = a.index ? (uint32_t)a.index[row] : row + first;  // a negative index is a large row
  const bool inside = from && source < a.source_rows;
  const Unit *unit = (const Unit *)from + ((size_t)source * stride + (column - begin));
  return inside ? *unit : Unit{};
}

// Four units a thread and turn, so that enough reads are on their way also where a unit is small.
template <class Unit> DEVICE void rows_move(const RowsMoveArgs &a) {
  constexpr uint32_t TURN = 4;
  const uint32_t first = a.scalars ? a.scalars->before[1] : 0;
  for (uint32_t at = TURN * blockIdx.x * blockDim.x + threadIdx.x; at < a.n; at += TURN * threads_in_grid()) {
    Unit v[TURN];
    size_t to[TURN];
#pragma unroll
    for (uint32_t k = 0; k < TURN; k++) {
      const uint32_t i = min(at + k * blockDim.x, a.n - 1), row = i / a.columns, column = i - row * a.columns.divisor;
      v[k] = rows_move_unit<Unit>(a, first, row, column);
      to[k] = (size_t)row * a.stride + column;
    }
#pragma unroll
    for (uint32_t k = 0; k < TURN; k++) {
      if (at + k * blockDim.x < a.n) ((Unit *)a.to)[to[k]] = v[k];
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) rows_move_16(const __grid_constant__ RowsMoveArgs a) { rows_move<uint4>(a); }
KERNEL_EXPORT(rows_move_16)
extern "C" __global__ void __launch_bounds__(256) rows_move_4(const __grid_constant__ RowsMoveArgs a) { rows_move<uint32_t>(a); }
KERNEL_EXPORT(rows_move_4)
extern "C" __global__ void __launch_bounds__(256) rows_move_2(const __grid_constant__ RowsMoveArgs a) { rows_move<uint16_t>(a); }
KERNEL_EXPORT(rows_move_2)
extern "C" __global__ void __launch_bounds__(256) rows_move_1(const __grid_constant__ RowsMoveArgs a) { rows_move<uint8_t>(a); }
KERNEL_EXPORT(rows_move_1)
