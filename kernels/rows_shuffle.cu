// rows_shuffle: channels of groups interleaved. graph::Op ChannelShuffle (ShuffleNet).
//
//   y[r, i] = x[r, (i mod g)(c / g) + i div g]
// x, y: [rows,c] of 2 or 4 byte elements, g divides c; y 16-byte aligned or slower. A thread writes 16 bytes wherever they fall in rows
// and reads them one by one: neighbouring threads read on in the same g runs. Bytes moved: each element once. Not measured on hardware.
#include "lanes.cuh"
#include "memory.cuh"

struct RowsShuffleArgs {
  const void *x;
  void *y;
  Divide channels, groups;
  uint32_t group_channels, n;  // c / g, elements
};
static_assert(sizeof(RowsShuffleArgs) == 48, "cuda/src/rows.rs asserts the same");

template <class T> DEVICE void rows_shuffle(const RowsShuffleArgs &a) {
  constexpr uint32_t LANES = LANES_OF<T>;
  const bool aligned = (uintptr_t)a.y % 16 == 0;
  for (uint32_t at = LANES * thread_in_grid(); at < a.n; at += LANES * threads_in_grid()) {
    const uint32_t row = at / a.channels, i = at - row * a.channels.divisor;
    uint32_t within = i / a.groups, group = i - within * a.groups.divisor;
    uint32_t start = row * a.channels.divisor;  // of the row
    Lanes<T, LANES> v;
#pragma unroll
    for (uint32_t k = 0; k < LANES; k++) {
      v.v[k] = ((const T *)a.x)[at + k < a.n ? start + group * a.group_channels + within : 0];
      if (++group == a.groups.divisor) {
        group = 0;
        if (++within == a.group_channels) {
          within = 0;
          start += a.channels.divisor;
        }
      }
    }
    if (aligned && at + LANES <= a.n) {
      store_lanes((T *)a.y + at, v);
    } else {
#pragma unroll
      for (uint32_t k = 0; k < LANES; k++) {
        if (at + k < a.n) ((T *)a.y)[at + k] = v.v[k];
      }
    }
  }
}

extern "C" __global__ void __launch_bounds__(256) rows_shuffle_2(const __grid_constant__ RowsShuffleArgs a) { rows_shuffle<uint16_t>(a); }
KERNEL_EXPORT(rows_shuffle_2)
extern "C" __global__ void __launch_bounds__(256) rows_shuffle_4(const __grid_constant__ RowsShuffleArgs a) { rows_shuffle<uint32_t>(a); }
KERNEL_EXPORT(rows_shuffle_4)
