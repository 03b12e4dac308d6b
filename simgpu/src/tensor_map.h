// A tensor map as the stand-in encodes it: what the hardware keeps in the same 128 bytes.
#pragma once
#include <cstdint>

namespace simgpu {
struct TensorMap {
  uint32_t magic;  // so that bytes that never were a tensor map show
  uint8_t im2col, data_type, rank, interleave, swizzle, promotion, nan_fill, element_bytes;
  uint64_t address;
  uint64_t stride[4];   // bytes, of dimension 1 and up
  uint32_t last[5];     // dimension - 1: 2^32 is legal
  uint16_t box[5];      // tiled: elements; im2col: channels, pixels
  uint8_t element_stride[5];
  int16_t lower[3], upper[3];  // im2col: corners, innermost first
};
constexpr uint32_t TENSOR_MAP_MAGIC = 0x70616d74;
static_assert(sizeof(TensorMap) <= 128);
}  // namespace simgpu
