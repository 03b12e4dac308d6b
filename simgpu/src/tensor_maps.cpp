// cuTensorMapEncodeTiled and cuTensorMapEncodeIm2col with the limits that the driver documents.
#include "driver.h"
#include "tensor_map.h"

using namespace simgpu;

namespace {
constexpr int ELEMENT_BYTES[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};  // u8 u16 u32 i32 u64 i64 f16 f32 f64 bf16 f32ftz tf32 tf32ftz
constexpr int TYPES = 13, FIRST_FLOAT = 6;
enum { INTERLEAVE_NONE, INTERLEAVE_16B, INTERLEAVE_32B };
enum { SWIZZLE_NONE, SWIZZLE_32B, SWIZZLE_64B, SWIZZLE_128B };

struct Request {
  void *map;
  int type;
  uint32_t rank;
  void *address;
  const uint64_t *dim, *stride;
  const uint32_t *element_stride;
  int interleave, swizzle, promotion, fill;
};

// What both kinds of map have in common. Fills `m`.
bool encode(const Request &r, TensorMap &m) {
  if (!r.map || (uintptr_t)r.map % 64 || r.type < 0 || r.type >= TYPES || r.rank < 1 || r.rank > 5) return false;
  if (!r.dim || !r.element_stride || (r.rank > 1 && !r.stride)) return false;
  if (r.interleave < INTERLEAVE_NONE || r.interleave > INTERLEAVE_32B || r.swizzle < SWIZZLE_NONE || r.swizzle > SWIZZLE_128B) return false;
  if (r.promotion < 0 || r.promotion > 3 || r.fill < 0 || r.fill > 1 || (r.fill && (r.type < FIRST_FLOAT))) return false;
  if (r.interleave != INTERLEAVE_NONE && r.rank < 3) return false;
  if (r.interleave == INTERLEAVE_32B && r.swizzle != SWIZZLE_32B) return false;
  const unsigned align = r.interleave == INTERLEAVE_32B ? 32 : 16;
  if (!r.address || (uintptr_t)r.address % align) return false;
  m = {TENSOR_MAP_MAGIC, 0, (uint8_t)r.type, (uint8_t)r.rank, (uint8_t)r.interleave, (uint8_t)r.swizzle, (uint8_t)r.promotion, (uint8_t)r.fill,
       (uint8_t)ELEMENT_BYTES[r.type], (uint64_t)(uintptr_t)r.address, {}, {}, {}, {}, {}, {}};
  for (uint32_t i = 0; i < r.rank; i++) {
    if (!r.dim[i] || r.dim[i] > 1ull << 32 || !r.element_stride[i] || r.element_stride[i] > 8) return false;
    m.last[i] = (uint32_t)(r.dim[i] - 1);
    m.element_stride[i] = (uint8_t)r.element_stride[i];
    if (i + 1 < r.rank) {
      if (!r.stride[i] || r.stride[i] % align || r.stride[i] >= 1ull << 40) return false;
      m.stride[i] = r.stride[i];
    }
  }
  return true;
}

// The innermost row of a box: whole 16 bytes, and no wider than the swizzle's span.
bool inner_fits(const Request &r, uint64_t elements) {
  const uint64_t bytes = elements * ELEMENT_BYTES[r.type];
  if (r.interleave != INTERLEAVE_NONE) return true;
  return bytes % 16 == 0 && (r.swizzle == SWIZZLE_NONE || bytes <= 16ull << r.swizzle);
}

int finish(const char *name, const Request &r, const TensorMap &m, bool legal) {
  if (legal) memset(r.map, 0, 128), memcpy(r.map, &m, sizeof m);
  const int result = legal ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
  log_call(name, result);
  return result;
}
}  // namespace

CUDA_API cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride, const uint32_t *box,
                                const uint32_t *element_stride, int interleave, int swizzle, int promotion, int fill) {
  const Request r{map, type, rank, address, dim, stride, element_stride, interleave, swizzle, promotion, fill};
  TensorMap m{};
  bool legal = encode(r, m) && box;
  for (uint32_t i = 0; legal && i < rank; i++) {
    legal = box[i] >= 1 && box[i] <= 256;
    m.box[i] = (uint16_t)box[i];
  }
  return finish(__func__, r, m, legal && inner_fits(r, box[0]));
}

CUDA_API cuTensorMapEncodeIm2col(void *map, int type, uint32_t rank, void *address, const uint64_t *dim, const uint64_t *stride, const int *lower,
                                 const int *upper, uint32_t channels, uint32_t pixels, const uint32_t *element_stride, int interleave,
                                 int swizzle, int promotion, int fill) {
  const Request r{map, type, rank, address, dim, stride, element_stride, interleave, swizzle, promotion, fill};
  TensorMap m{};
  bool legal = encode(r, m) && lower && upper && rank >= 3 && channels >= 1 && channels <= 256 && pixels >= 1 && pixels <= 1024;
  const int limit = rank == 3 ? 32768 : rank == 4 ? 128 : 16;  // the corners share one word
  for (uint32_t i = 0; legal && i + 2 < rank; i++) {
    legal = lower[i] >= -limit && lower[i] < limit && upper[i] >= -limit && upper[i] < limit;
    legal = legal && (int64_t)dim[i + 1] + upper[i] - lower[i] > 0;  // the box has a pixel
    m.lower[i] = (int16_t)lower[i], m.upper[i] = (int16_t)upper[i];
  }
  m.im2col = 1, m.box[0] = (uint16_t)channels, m.box[1] = (uint16_t)pixels;
  return finish(__func__, r, m, legal && inner_fits(r, channels));
}
