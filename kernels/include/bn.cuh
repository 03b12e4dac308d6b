// What the batch-norm kernels share: how a block finds its elements, eight elements at a time, sums over a block.
//
// x is [rows, c], rows in `groups` equal runs. A group is cut into lines of `width` = lcm(c, 8) elements: whatever c is, eight
// neighbours of a line are an aligned pack, and pack p holds the same channels in every line. A thread keeps to one pack p and walks
// down the lines, so that its constants per channel are read once. Blocks: (packs of a line, runs of `chunk` lines, groups).
#pragma once
#include "eight.cuh"

constexpr int BN_THREADS = ROW_THREADS;

struct BnLines {
  uint32_t c;
  uint32_t width;   // elements of a line
  uint32_t group;   // elements of a group; the last line may be short
  uint32_t packs;   // packs of a line that a block takes, at most 256; its threads are rows of so many
  uint32_t chunk;   // lines of a block
  uint32_t splits;  // blocks down a group
};
static_assert(sizeof(BnLines) == 24, "cuda/src/bn.rs asserts the same");

// A thread's elements, as offsets in its group: eight each at first, first + step, ... below `whole`, then those up to `end`, if any.
struct BnWalk : BlockRows {
  uint32_t column;           // first of the thread's eight elements in a line
  uint32_t first, step, whole, end;
};
DEVICE BnWalk bn_walk(const BnLines &l) {
  BnWalk w;
  static_cast<BlockRows &>(w) = block_rows(l.packs);
  w.column = 8 * (blockIdx.x * l.packs + w.lane);
  const uint32_t begin = blockIdx.y * l.chunk * l.width;
  w.end = min(l.group, begin + l.chunk * l.width);
  w.whole = w.end < 8 ? 0 : w.end - 7;
  w.first = w.row < w.rows && w.column < l.width ? begin + w.row * l.width + w.column : w.end;
  w.step = w.rows * l.width;
  return w;
}

// The channels of a thread's eight elements.
struct BnChannels {
  uint32_t of[8];
};
DEVICE BnChannels bn_channels(const BnLines &l, const BnWalk &w) {
  BnChannels channel;
  channel.of[0] = w.column % l.c;
#pragma unroll
  for (int j = 1; j < 8; j++) channel.of[j] = channel.of[j - 1] + 1 == l.c ? 0 : channel.of[j - 1] + 1;
  return channel;
}

// Lines of split s that have column v: how many elements a partial result stands for.
DEVICE uint32_t bn_count(const BnLines &l, uint32_t s, uint32_t v) {
  const uint32_t lines = v < l.group ? (l.group - v - 1) / l.width + 1 : 0, before = s * l.chunk;
  return lines < before ? 0 : min(lines - before, l.chunk);
}

// Mask bits of the elements from `at`, the first lowest; all ones without a mask. Packs start at a byte.
template <class T> struct Mask8 {
  static DEVICE uint32_t at(const uint8_t *mask, size_t at) { return mask ? mask[at / 8] : 0xff; }
};
DEVICE bool mask_bit(const uint8_t *mask, size_t at) { return !mask || (mask[at / 8] >> (at % 8) & 1); }
template <> struct Mask8<Any> {
  static DEVICE uint32_t at(const uint8_t *mask, size_t at) {
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 8; j++) bits |= (uint32_t)mask_bit(mask, at + j) << j;
    return bits;
  }
};

DEVICE float bn_rstd(float var, double eps) { return 1.f / sqrtf(var + (float)eps); }

// Kernels that merge the partial results of all splits: 8 channels a block, 32 threads each.
struct BnMerge {
  uint32_t channel, lane;
};
DEVICE BnMerge bn_merge() { return {8 * blockIdx.x + threadIdx.x % 8, threadIdx.x / 8}; }

// The sum over the 32 threads of a channel, for each of them.
DEVICE double bn_merge_sum(double v, double (&scratch)[8][8]) {
  v += __shfl_xor_sync(0xffffffffu, v, 8);
  v += __shfl_xor_sync(0xffffffffu, v, 16);
  __syncthreads();  // readers of the call before have read
  if (threadIdx.x % 32 < 8) scratch[threadIdx.x / 32][threadIdx.x % 8] = v;
  __syncthreads();
  v = scratch[0][threadIdx.x % 8];
#pragma unroll
  for (int warp = 1; warp < 8; warp++) v += scratch[warp][threadIdx.x % 8];
  return v;
}
