// Depthwise convolution (one filter a channel) directly on NHWC: pure bandwidth, so a thread has 16 bytes of channels of a pixel.
//
// A block has CHUNKS chunks of channels and THREADS / CHUNKS pixels at a time; its filters lie in shared memory as f32 [tap][channel].
// LANES: channels of a chunk, those of 16 bytes, or 1 where the channels come in no whole chunks.
#pragma once
#include "conv.cuh"

template <class T, int LANES> struct Depthwise {
  static constexpr int THREADS = 256, CHUNKS = LANES == 1 ? 32 : 8, CHANNELS = CHUNKS * LANES, ROWS = THREADS / CHUNKS;
  static constexpr bool VEC = LANES > 1;

  DEVICE static int chunk() { return threadIdx.x % CHUNKS; }
  DEVICE static int row() { return threadIdx.x / CHUNKS; }
  // The first channel of this thread.
  DEVICE static uint32_t channel() { return blockIdx.y * CHANNELS + chunk() * LANES; }

  // Filters w[c][r s] of the block's channels, transposed.
  DEVICE static void load_filters(float *to, const T *w, uint32_t channels, uint32_t taps) {
    for (uint32_t i = threadIdx.x; i < taps * CHANNELS; i += THREADS) {
      const uint32_t c = blockIdx.y * CHANNELS + i / taps;
      to[i % taps * CHANNELS + i / taps] = c < channels ? to_f32(w[(size_t)c * taps + i % taps]) : 0.f;
    }
    __syncthreads();
  }
};
