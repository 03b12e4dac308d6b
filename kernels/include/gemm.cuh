// A block's tile of C = A B: 4 warps, operands through shared memory in a ring of stages that asynchronous copies fill.
//
// A tile of an operand is stored as rows of 16-byte chunks; chunk c of row r lies at c ^ swizzle(r), so that the eight rows
// which ldmatrix reads at one chunk fall into different banks. An operand is contiguous along k, or along m (n).
// Every kind of arithmetic leaves its sums in the lane layout of mma.m16n8, so that one epilogue serves all.
#pragma once
#include "memory.cuh"
#include "ptx.cuh"

constexpr int GEMM_THREADS = 128;

template <class T_, int ROWS_, int COLS_> struct Tile {
  using T = T_;
  static constexpr int ROWS = ROWS_, COLS = COLS_, V = 16 / sizeof(T), CHUNKS = COLS / V, ELEMENTS = ROWS * COLS;
  DEVICE static int swizzle(int row) { return CHUNKS >= 8 ? row & 7 : CHUNKS == 4 ? row >> 1 & 3 : CHUNKS == 2 ? row >> 2 & 1 : 0; }
  DEVICE static T *chunk(T *tile, int row, int c) { return tile + row * COLS + (c ^ swizzle(row)) * V; }
  DEVICE static const T *chunk(const T *tile, int row, int c) { return tile + row * COLS + (c ^ swizzle(row)) * V; }
  DEVICE static T at(const T *tile, int row, int col) { return chunk(tile, row, col / V)[col % V]; }
};

// What lies side by side in an operand's tile.
enum class Along { K, MN };

template <class T, int SIZE, int BK, Along ALONG> struct OperandTile : Tile<T, SIZE, BK> {
  DEVICE static T element(const T *tile, int i, int k) { return Tile<T, SIZE, BK>::at(tile, i, k); }
};
template <class T, int SIZE, int BK> struct OperandTile<T, SIZE, BK, Along::MN> : Tile<T, BK, SIZE> {
  DEVICE static T element(const T *tile, int i, int k) { return Tile<T, BK, SIZE>::at(tile, k, i); }
};

// bf16 operands on tensor cores.
struct Bf16Math {
  using T = bf16;
  static constexpr int BK = 32;
  template <class A, Along ALONG> DEVICE static void load_a(uint32_t (&r)[4], const T *tile, int m, int k) {
    const int lane = threadIdx.x % 32;
    if (ALONG == Along::K) ldmatrix_x4(r, A::chunk(tile, m + lane % 16, k / 8 + lane / 16));
    else ldmatrix_x4_trans(r, A::chunk(tile, k + lane % 8 + lane / 16 * 8, m / 8 + lane / 8 % 2));
  }
  // Two n-tiles at once: r = b[0][0], b[0][1], b[1][0], b[1][1].
  template <class B, Along ALONG> DEVICE static void load_b(uint32_t (&r)[4], const T *tile, int n, int k) {
    const int lane = threadIdx.x % 32;
    if (ALONG == Along::K) ldmatrix_x4(r, B::chunk(tile, n + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
    else ldmatrix_x4_trans(r, B::chunk(tile, k + lane % 8 + lane / 8 % 2 * 8, n / 8 + lane / 16));
  }
  template <class A, class B, Along ALONG_A, Along ALONG_B, int MT, int NT>
  DEVICE static void multiply(float (&acc)[MT * NT][4], const T *a, const T *b, int m, int n) {
#pragma unroll
    for (int k = 0; k < BK; k += 16) {
      uint32_t fa[MT][4], fb[NT][2];
#pragma unroll
      for (int i = 0; i < MT; i++) load_a<A, ALONG_A>(fa[i], a, m + 16 * i, k);
#pragma unroll
      for (int j = 0; j < NT; j += 2) {
        uint32_t r[4];
        load_b<B, ALONG_B>(r, b, n + 8 * j, k);
        fb[j][0] = r[0], fb[j][1] = r[1], fb[j + 1][0] = r[2], fb[j + 1][1] = r[3];
      }
      mma_tile_bf16<MT, NT>(acc, fa, fb);
    }
  }
};

// f32 operands rounded to tf32, on tensor cores.
struct Tf32Math {
  using T = float;
  static constexpr int BK = 16;
  template <class A, class B, Along ALONG_A, Along ALONG_B, int MT, int NT>
  DEVICE static void multiply(float (&acc)[MT * NT][4], const T *a, const T *b, int m, int n) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll
    for (int k = 0; k < BK; k += 8) {
      uint32_t fa[MT][4], fb[NT][2];
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) fa[i][e] = to_tf32(A::element(a, m + 16 * i + g + e % 2 * 8, k + q + e / 2 * 4));
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) fb[j][e] = to_tf32(B::element(b, n + 8 * j + g, k + q + e * 4));
      mma_tile_tf32<MT, NT>(acc, fa, fb);
    }
  }
};

// f32 multiply-adds.
struct F32Math {
  using T = float;
  static constexpr int BK = 16;
  template <class A, class B, Along ALONG_A, Along ALONG_B, int MT, int NT>
  DEVICE static void multiply(float (&acc)[MT * NT][4], const T *a, const T *b, int m, int n) {
    const int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
#pragma unroll 2
    for (int k = 0; k < BK; k++) {
      float fa[MT][2], fb[NT][2];
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int e = 0; e < 2; e++) fa[i][e] = A::element(a, m + 16 * i + g + 8 * e, k);
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) fb[j][e] = B::element(b, n + 8 * j + 2 * q + e, k);
#pragma unroll
      for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) acc[i * NT + j][e] = fmaf(fa[i][e / 2], fb[j][e % 2], acc[i * NT + j][e]);
    }
  }
};

// The tile's shape and what a warp has of it.
template <class Math_, int BM_, int BN_, Along ALONG_A, Along ALONG_B> struct Gemm {
  using Math = Math_;
  using T = typename Math::T;
  static constexpr int BM = BM_, BN = BN_, BK = Math::BK, V = 16 / sizeof(T);
  static constexpr int STAGES = 4, WM = BM / 2, WN = BN / 2, MT = WM / 16, NT = WN / 8;
  static_assert(MT >= 1 && NT >= 2 && NT % 2 == 0, "a warp has whole mma tiles, pairs of them along n");
  using A = OperandTile<T, BM, BK, ALONG_A>;
  using B = OperandTile<T, BN, BK, ALONG_B>;
  static constexpr int STAGE = A::ELEMENTS + B::ELEMENTS;
  // The epilogue's slabs lie in the memory of the stages.
  static constexpr int SLAB_ROW = WN + 4;
  static_assert(4 * 16 * SLAB_ROW * 4 <= STAGES * STAGE * (int)sizeof(T), "slabs fit into the stages");

  float acc[MT * NT][4];
  T *shared;
  int m, n;  // the warp's corner of the tile

  DEVICE explicit Gemm(T *shared) : shared(shared) {
    const int warp = threadIdx.x / 32;
    m = warp / 2 * WM, n = warp % 2 * WN;
#pragma unroll
    for (int i = 0; i < MT * NT; i++)
#pragma unroll
      for (int e = 0; e < 4; e++) acc[i][e] = 0.f;
  }

  // acc += the product over `tiles` steps of k. A loader's `load(tile)` starts the copies of its next step.
  template <class LoadA, class LoadB> DEVICE void run(LoadA &a, LoadB &b, int tiles) {
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
      if (s < tiles) a.load(shared + s * STAGE), b.load(shared + s * STAGE + A::ELEMENTS);
      cp_async_commit();
    }
    int slot = 0, next = STAGES - 1;
    for (int t = 0; t < tiles; t++) {
      cp_async_wait<STAGES - 2>();
      __syncthreads();  // stage `slot` has arrived for all, and all are done with stage `next`
      if (t + STAGES - 1 < tiles) a.load(shared + next * STAGE), b.load(shared + next * STAGE + A::ELEMENTS);
      cp_async_commit();
      Math::template multiply<A, B, ALONG_A, ALONG_B, MT, NT>(acc, shared + slot * STAGE, shared + slot * STAGE + A::ELEMENTS, m, n);
      slot = slot + 1 == STAGES ? 0 : slot + 1;
      next = next + 1 == STAGES ? 0 : next + 1;
    }
    cp_async_wait<0>();
    __syncthreads();  // the stages are free for the epilogue
  }

  // acc += an addend, which `load(row, column, v)` reads as `finish` stores: V neighbouring values at a time, through a warp's slab.
  template <class Load> DEVICE void add(const Load &load) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    float *slab = reinterpret_cast<float *>(shared) + threadIdx.x / 32 * 16 * SLAB_ROW;
#pragma unroll
    for (int i = 0; i < MT; i++) {
      __syncwarp();
      for (int c = lane; c < 16 * (WN / V); c += 32) {
        const int row = c / (WN / V), column = c % (WN / V) * V;
        float v[V] = {};
        load(m + 16 * i + row, n + column, v);
#pragma unroll
        for (int k = 0; k < V; k++) slab[row * SLAB_ROW + column + k] = v[k];
      }
      __syncwarp();
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) acc[i * NT + j][e] += slab[(g + e / 2 * 8) * SLAB_ROW + 8 * j + 2 * q + e % 2];
    }
    __syncthreads();  // the slabs are free
  }

  // Two values as `T` stores them.
  DEVICE static float2 stored(float x, float y) {
    if (sizeof(T) == 4) return make_float2(x, y);
    const uint32_t both = to_bf16x2(x, y);
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
  }

  // Mean and sum of squared deviations of each column over the tile's first `rows` rows, of values as `T` stores them: each column is
  // summed once for its mean, then about it. `moment(column, mean, m2)` is called once per column.
  template <class Moment> DEVICE void column_moments(int rows, const Moment &moment) {
    float *part = reinterpret_cast<float *>(shared);  // [2 rows of warps][BN]
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    float mean[NT * 2] = {}, sum[NT * 2];
#pragma unroll
    for (int pass = 0; pass < 2; pass++) {
#pragma unroll
      for (int c = 0; c < NT * 2; c += 2) {
        sum[c] = sum[c + 1] = 0.f;
#pragma unroll
        for (int i = 0; i < MT; i++)
#pragma unroll
          for (int half = 0; half < 2; half++) {
            const float2 y = stored(acc[i * NT + c / 2][2 * half], acc[i * NT + c / 2][2 * half + 1]);
            const float dx = y.x - mean[c], dy = y.y - mean[c + 1];
            if (m + 16 * i + g + 8 * half < rows) {
              sum[c] += pass == 0 ? y.x : dx * dx;
              sum[c + 1] += pass == 0 ? y.y : dy * dy;
            }
          }
#pragma unroll
        for (int d = 4; d < 32; d *= 2) {
          sum[c] += __shfl_xor_sync(0xffffffffu, sum[c], d);
          sum[c + 1] += __shfl_xor_sync(0xffffffffu, sum[c + 1], d);
        }
        if (g == 0) {
          float *to = part + threadIdx.x / 64 * BN + n + c / 2 * 8 + 2 * q;
          to[0] = sum[c], to[1] = sum[c + 1];
        }
      }
      __syncthreads();
#pragma unroll
      for (int c = 0; c < NT * 2; c++) {
        const int column = n + c / 2 * 8 + 2 * q + c % 2;
        const float total = part[column] + part[BN + column];
        if (pass == 0) mean[c] = total / (float)rows;
        else if (threadIdx.x < 64 && g == 0) moment(column, mean[c], total);
      }
      __syncthreads();
    }
  }

  // store(row, column, v): V neighbouring values of the tile at a time, through a slab of shared memory per warp.
  template <class Store> DEVICE void finish(const Store &store) {
    const int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
    float *slab = reinterpret_cast<float *>(shared) + threadIdx.x / 32 * 16 * SLAB_ROW;
#pragma unroll
    for (int i = 0; i < MT; i++) {
      __syncwarp();
#pragma unroll
      for (int j = 0; j < NT; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) slab[(g + e / 2 * 8) * SLAB_ROW + 8 * j + 2 * q + e % 2] = acc[i * NT + j][e];
      __syncwarp();
      for (int c = lane; c < 16 * (WN / V); c += 32) {
        const int row = c / (WN / V), column = c % (WN / V) * V;
        float v[V];
#pragma unroll
        for (int k = 0; k < V; k += 4) {
          const float4 four = *reinterpret_cast<const float4 *>(slab + row * SLAB_ROW + column + k);
          v[k] = four.x, v[k + 1] = four.y, v[k + 2] = four.z, v[k + 3] = four.w;
        }
        store(m + 16 * i + row, n + column, v);
      }
    }
  }
};
