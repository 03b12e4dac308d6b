// opt_rows: carried rows into a method's state. graph::Op Assign and ScatterRows. Nothing is written where *finite is 0.
//   assign:  state = the valid rows of all micro-batches, one after another; rows of the state beyond them stay
//   scatter: state[index] = row; of equal indices the last in (micro-batch, row) order wins; negative ones are padding
//
// state: f32 or bf16 [state_rows][width]; rows: f32 or bf16 [count][width] of micro-batch 0, index: i32[count], the next micro-batch
// slot_bytes further. finite: f32[1]. Natural alignment. A warp copies a row: a row has one writer in every order of blocks.
// Bytes moved: each row read and written once; scatter reads the index once per row, which L2 holds. Not measured on hardware.
#include "memory.cuh"
#include "step.cuh"

struct RowsArgs {
  Operand state, rows;
  const int *index;  // scatter
  const float *finite;
  const Scalars *scalars;
  uint64_t slot_bytes;
  uint32_t count, width, state_rows, pad;
};
static_assert(sizeof(RowsArgs) == 80, "cuda/src/update.rs asserts the same");

// Row `to` of the state becomes row `from` of micro-batch `micro`, by all lanes of a warp.
DEVICE void copy_row(const RowsArgs &a, uint32_t to, uint32_t micro, uint32_t from) {
  const Operand rows{(char *)a.rows.p + micro * a.slot_bytes, a.rows.type, 0};
  const size_t source = (size_t)from * a.width, target = (size_t)to * a.width;
  for (uint32_t i = threadIdx.x % 32; i < a.width; i += 32) set(a.state, target + i, get(rows, source + i));
}

// A warp per row of the state.
extern "C" __global__ void __launch_bounds__(256) opt_rows_assign(const __grid_constant__ RowsArgs a) {
  if (*a.finite == 0.f) return;
  for (uint32_t to = thread_in_grid() / 32; to < a.state_rows; to += threads_in_grid() / 32) {
    uint32_t row = to, micro = 0;
    for (; micro < a.scalars->leaves; micro++) {
      const uint32_t valid = valid_rows(a.scalars, a.count, micro);
      if (row < valid) break;
      row -= valid;
    }
    if (micro == a.scalars->leaves) return;
    copy_row(a, to, micro, row);
  }
}
KERNEL_EXPORT(opt_rows_assign)

DEVICE const int *index_of(const RowsArgs &a, uint32_t micro) {
  return (const int *)((const char *)a.index + micro * a.slot_bytes);
}

// Whether a later row goes where row `row` of micro-batch `micro` goes; the same answer in all lanes of a warp.
DEVICE bool is_overwritten(const RowsArgs &a, uint32_t micro, uint32_t row, int to) {
  bool later = false;
  for (uint32_t m = micro; m < a.scalars->leaves; m++) {
    const uint32_t valid = valid_rows(a.scalars, a.count, m), begin = m == micro ? row + 1 : 0;
    const int *index = index_of(a, m);
    for (uint32_t r = begin + threadIdx.x % 32; r < valid; r += 32) later |= index[r] == to;
  }
  return __any_sync(0xffffffffu, later);
}

// A warp per carried row.
extern "C" __global__ void __launch_bounds__(256) opt_rows_scatter(const __grid_constant__ RowsArgs a) {
  if (*a.finite == 0.f) return;
  const uint32_t all = a.scalars->leaves * a.count;
  for (uint32_t i = thread_in_grid() / 32; i < all; i += threads_in_grid() / 32) {
    const uint32_t micro = i / a.count, row = i % a.count;
    if (row >= valid_rows(a.scalars, a.count, micro)) continue;
    const int to = index_of(a, micro)[row];
    // An index outside the state writes nowhere: what the caller was to check must not become a stray write.
    if (to < 0 || (uint32_t)to >= a.state_rows || is_overwritten(a, micro, row, to)) continue;
    copy_row(a, (uint32_t)to, micro, row);
  }
}
KERNEL_EXPORT(opt_rows_scatter)
