// matmul: C [m,n] = op(A) [m,k] op(B) [k,n] (+ bias [n]). graph::Op Matmul.
//   matmul_bf16: both factors rounded to bf16, bf16 tensor cores;  matmul_tf32: to tf32, tf32 tensor cores;  matmul_f32: fmaf.
//   All accumulate in f32. A factor lies either with k innermost (A [m,k], B [n,k]) or with its other axis (A [k,m], B [k,n]).
//
// A, B, C: f32 or bf16, row-major without gaps, natural alignment; a factor is read by vectors of 16 bytes where its address and its
// rows are so aligned. bias: f32 or bf16. Factors of bf16 go to matmul_bf16 alone. Any sizes; what lies beyond them reads as zero.
// A block makes 64 x 64 of C over one slice of k: grid (tiles of m, tiles of n, slices). With one slice it adds the bias and stores C;
// else it stores f32 partials [slices][m][n], which matmul_slices adds in order.
// Tiles go from memory to registers to shared memory, which converts them on the way; the next step's loads fly during this one's products.
// Bytes moved: A n/64 times and B m/64 times (mostly from L2), C once, 8 per element and slice where k is cut.
// Not measured on hardware.
#include "memory.cuh"
#include "ptx.cuh"

constexpr uint32_t TILE = 64, STEP = 32, THREADS = 128;
constexpr uint32_t PACKS = TILE * STEP / 8 / THREADS;  // of 8 elements, per thread and factor

struct Factor {
  const void *p;
  uint32_t type;    // FloatType
  uint32_t k_last;  // whether k is the innermost axis
  uint32_t vector;  // whether rows begin at multiples of 16 bytes
  uint32_t pad;
};
struct MatmulArgs {
  Factor a, b;
  Operand c, bias;
  float *partials;  // null: one slice
  uint32_t m, n, k, steps_per_slice;
};
static_assert(sizeof(Factor) == 24 && sizeof(MatmulArgs) == 104, "cuda/src/matmul.rs asserts the same");

// 8 neighbours as they lie in memory: f32 in both halves, bf16 in the first.
struct Raw {
  uint4 half[2];
};

// Neighbours beyond `left` read as zero.
template <class Word, int N> DEVICE void read_some(const Word *p, uint32_t left, Word (&v)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) v[i] = (uint32_t)i < left ? p[i] : Word(0);
}

// Pack `pack` of the tile that begins at (other, k): four packs to a row where k is innermost, else eight.
DEVICE Raw read(const Factor &f, uint32_t others, uint32_t ks, uint32_t other, uint32_t k, uint32_t pack) {
  const uint32_t row = f.k_last ? other + pack / 4 : k + pack / 8, column = f.k_last ? k + pack % 4 * 8 : other + pack % 8 * 8;
  const uint32_t rows = f.k_last ? others : ks, columns = f.k_last ? ks : others;
  Raw r{};
  if (row >= rows || column >= columns) return r;
  const size_t at = (size_t)row * columns + column;
  const bool whole = f.vector && column + 8 <= columns;
  if (f.type == BFLOAT16) {
    const auto *p = (const uint16_t *)f.p + at;
    if (whole) {
      r.half[0] = *(const uint4 *)p;
    } else {
      uint16_t v[8];
      read_some(p, columns - column, v);
      const auto two = [](uint16_t low, uint16_t high) { return low | (uint32_t)high << 16; };
      r.half[0] = make_uint4(two(v[0], v[1]), two(v[2], v[3]), two(v[4], v[5]), two(v[6], v[7]));
    }
  } else {
    const auto *p = (const uint32_t *)f.p + at;
    if (whole) {
      r.half[0] = ((const uint4 *)p)[0], r.half[1] = ((const uint4 *)p)[1];
    } else {
      uint32_t v[8];
      read_some(p, columns - column, v);
      r.half[0] = make_uint4(v[0], v[1], v[2], v[3]), r.half[1] = make_uint4(v[4], v[5], v[6], v[7]);
    }
  }
  return r;
}

// Where a block's sums go.
struct Target {
  Operand c, bias;
  uint32_t m, n;
  bool pairs;  // two columns at once
};

DEVICE void put(const Target &t, uint32_t row, uint32_t column, float v) {
  if (row >= t.m || column >= t.n) return;
  set(t.c, (size_t)row * t.n + column, t.bias.p ? v + get(t.bias, column) : v);
}

// Columns `column`, an even number, and the next.
DEVICE void put_pair(const Target &t, uint32_t row, uint32_t column, float v0, float v1) {
  if (!t.pairs) {
    put(t, row, column, v0);
    put(t, row, column + 1, v1);
    return;
  }
  if (row >= t.m || column >= t.n) return;
  if (t.bias.p) v0 += get(t.bias, column), v1 += get(t.bias, column + 1);
  const size_t at = (size_t)row * t.n + column;
  if (t.c.type == BFLOAT16) ((uint32_t *)t.c.p)[at / 2] = to_bf16(v0).bits | (uint32_t)to_bf16(v1).bits << 16;
  else ((float2 *)t.c.p)[at / 2] = make_float2(v0, v1);
}

// A thread's 32 sums: 2 x 4 fragments of its warp's 32 x 32 on tensor cores, 8 rows x 4 columns of the block's tile otherwise.
typedef float Sums[8][4];

struct WarpTile {
  uint32_t lane = threadIdx.x % 32, row = threadIdx.x / 64 * 32, column = threadIdx.x / 32 % 2 * 32;
  DEVICE void store(const Target &t, uint32_t m, uint32_t n, const Sums &d) const {
    m += row + lane / 4, n += column + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int h = 0; h < 2; h++) put_pair(t, m + i / 4 * 16 + 8 * h, n + i % 4 * 8, d[i][2 * h], d[i][2 * h + 1]);
  }
};

struct Bf16 {
  typedef uint16_t Element;
  // 16 bytes more than a row: the eight rows of an ldmatrix lie in different banks.
  static constexpr uint32_t K_ROW = STEP + 8, OTHER_ROW = TILE + 8;

  static DEVICE void write(Element *to, const Raw &r, uint32_t type) {
    uint4 v = r.half[0];
    if (type == FLOAT32) {
      const auto two = [](uint32_t low, uint32_t high) {
        return to_bf16(__uint_as_float(low)).bits | (uint32_t)to_bf16(__uint_as_float(high)).bits << 16;
      };
      const uint4 &low = r.half[0], &high = r.half[1];
      v = make_uint4(two(low.x, low.y), two(low.z, low.w), two(high.x, high.y), two(high.z, high.w));
    }
    *(uint4 *)to = v;
  }

  static DEVICE void multiply(Sums &d, const Element *a, const Element *b, bool a_k_last, bool b_k_last) {
    const WarpTile t;
    const uint32_t low = t.lane % 8, middle = t.lane / 8 % 2 * 8, high = t.lane / 16 * 8;
#pragma unroll
    for (uint32_t k = 0; k < STEP; k += 16) {
      uint32_t fa[2][4], fb[4][2];
#pragma unroll
      for (uint32_t i = 0; i < 2; i++) {
        if (a_k_last) ldmatrix_x4(fa[i], a + (t.row + 16 * i + low + middle) * K_ROW + k + high);
        else ldmatrix_x4_trans(fa[i], a + (k + low + high) * OTHER_ROW + t.row + 16 * i + middle);
      }
#pragma unroll
      for (uint32_t j = 0; j < 2; j++) {
        uint32_t r[4];
        if (b_k_last) ldmatrix_x4(r, b + (t.column + 16 * j + low + high) * K_ROW + k + middle);
        else ldmatrix_x4_trans(r, b + (k + low + middle) * OTHER_ROW + t.column + 16 * j + high);
        fb[2 * j][0] = r[0], fb[2 * j][1] = r[1], fb[2 * j + 1][0] = r[2], fb[2 * j + 1][1] = r[3];
      }
      mma_tile_bf16<2, 4>(d, fa, fb);
    }
  }

  static DEVICE void store(const Target &t, uint32_t m, uint32_t n, const Sums &d) { WarpTile().store(t, m, n, d); }
};

struct Tf32 {
  typedef uint32_t Element;
  // 4 and 8 words more than a row: a fragment's 32 elements lie in different banks.
  static constexpr uint32_t K_ROW = STEP + 4, OTHER_ROW = TILE + 8;

  static DEVICE void write(Element *to, const Raw &r, uint32_t) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const auto round = [](uint32_t v) { return to_tf32(__uint_as_float(v)); };
      const uint4 v = r.half[h];
      ((uint4 *)to)[h] = make_uint4(round(v.x), round(v.y), round(v.z), round(v.w));
    }
  }

  static DEVICE void multiply(Sums &d, const Element *a, const Element *b, bool a_k_last, bool b_k_last) {
    const WarpTile t;
    const uint32_t g = t.lane / 4, q = t.lane % 4;
    // One step in k and in the other axis.
    const uint32_t a_k = a_k_last ? 1 : OTHER_ROW, a_row = a_k_last ? K_ROW : 1;
    const uint32_t b_k = b_k_last ? 1 : OTHER_ROW, b_column = b_k_last ? K_ROW : 1;
    a += (t.row + g) * a_row + q * a_k;
    b += (t.column + g) * b_column + q * b_k;
#pragma unroll
    for (uint32_t k = 0; k < STEP; k += 8) {
      uint32_t fa[2][4], fb[4][2];
#pragma unroll
      for (uint32_t i = 0; i < 2; i++)
#pragma unroll
        for (uint32_t e = 0; e < 4; e++) fa[i][e] = a[(16 * i + 8 * (e % 2)) * a_row + (k + 4 * (e / 2)) * a_k];
#pragma unroll
      for (uint32_t j = 0; j < 4; j++)
#pragma unroll
        for (uint32_t e = 0; e < 2; e++) fb[j][e] = b[8 * j * b_column + (k + 4 * e) * b_k];
      mma_tile_tf32<2, 4>(d, fa, fb);
    }
  }

  static DEVICE void store(const Target &t, uint32_t m, uint32_t n, const Sums &d) { WarpTile().store(t, m, n, d); }
};

struct F32 {
  typedef uint32_t Element;
  static constexpr uint32_t K_ROW = STEP + 4, OTHER_ROW = TILE + 8;

  // Rows 4 row + 0..3 and 32 more, columns column + 0, 16, 32, 48: no bank is hit twice in either layout.
  static DEVICE uint32_t row() { return threadIdx.x / 16 * 4; }
  static DEVICE uint32_t column() { return threadIdx.x % 16; }

  static DEVICE void write(Element *to, const Raw &r, uint32_t) {
    ((uint4 *)to)[0] = r.half[0];
    ((uint4 *)to)[1] = r.half[1];
  }

  static DEVICE void spread(const Element *from, float &x, float &y, float &z, float &w) {
    const uint4 v = *(const uint4 *)from;
    x = __uint_as_float(v.x), y = __uint_as_float(v.y), z = __uint_as_float(v.z), w = __uint_as_float(v.w);
  }

  static DEVICE void multiply(Sums &d, const Element *a, const Element *b, bool a_k_last, bool b_k_last) {
#pragma unroll 2
    for (uint32_t k = 0; k < STEP; k += 4) {
      float fa[4][8], fb[4][4];  // [k][row or column]
      if (a_k_last) {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
          spread(a + (row() + i % 4 + i / 4 * 32) * K_ROW + k, fa[0][i], fa[1][i], fa[2][i], fa[3][i]);
        }
      } else {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
          float *to = &fa[i / 2][i % 2 * 4];
          spread(a + (k + i / 2) * OTHER_ROW + row() + i % 2 * 32, to[0], to[1], to[2], to[3]);
        }
      }
      if (b_k_last) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) spread(b + (column() + 16 * j) * K_ROW + k, fb[0][j], fb[1][j], fb[2][j], fb[3][j]);
      } else {
#pragma unroll
        for (uint32_t j = 0; j < 16; j++) fb[j / 4][j % 4] = __uint_as_float(b[(k + j / 4) * OTHER_ROW + column() + j % 4 * 16]);
      }
#pragma unroll
      for (int kk = 0; kk < 4; kk++)
#pragma unroll
        for (int i = 0; i < 8; i++)
#pragma unroll
          for (int j = 0; j < 4; j++) d[i][j] = fmaf(fa[kk][i], fb[kk][j], d[i][j]);
    }
  }

  static DEVICE void store(const Target &t, uint32_t m, uint32_t n, const Sums &d) {
#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) put(t, m + row() + i % 4 + i / 4 * 32, n + column() + 16 * j, d[i][j]);
  }
};

// Both factors' tiles of one step: rows of k or of the other axis, as in memory.
template <class Math> struct alignas(16) Stage {
  static constexpr uint32_t K = TILE * Math::K_ROW, OTHER = STEP * Math::OTHER_ROW, SIZE = K > OTHER ? K : OTHER;
  typename Math::Element a[SIZE], b[SIZE];
};

template <class Math> DEVICE void matmul(const MatmulArgs &args) {
  __shared__ Stage<Math> stages[2];
  const uint32_t m = blockIdx.x * TILE, n = blockIdx.y * TILE;
  const uint32_t all = (args.k + STEP - 1) / STEP, first = blockIdx.z * args.steps_per_slice;
  const uint32_t end = first + args.steps_per_slice < all ? first + args.steps_per_slice : all;
  Raw a[PACKS], b[PACKS];
  const auto load = [&](uint32_t step) {
#pragma unroll
    for (uint32_t i = 0; i < PACKS; i++) {
      a[i] = read(args.a, args.m, args.k, m, step * STEP, threadIdx.x + i * THREADS);
      b[i] = read(args.b, args.n, args.k, n, step * STEP, threadIdx.x + i * THREADS);
    }
  };
  const auto place = [](const Factor &f, uint32_t pack) {
    return f.k_last ? pack / 4 * Math::K_ROW + pack % 4 * 8 : pack / 8 * Math::OTHER_ROW + pack % 8 * 8;
  };
  const auto write = [&](Stage<Math> &stage) {
#pragma unroll
    for (uint32_t i = 0; i < PACKS; i++) {
      Math::write(stage.a + place(args.a, threadIdx.x + i * THREADS), a[i], args.a.type);
      Math::write(stage.b + place(args.b, threadIdx.x + i * THREADS), b[i], args.b.type);
    }
  };
  Sums d = {};
  if (first < end) {
    load(first);
    write(stages[0]);
  }
  __syncthreads();
  for (uint32_t step = first; step < end; step++) {
    const uint32_t now = (step - first) % 2;
    if (step + 1 < end) load(step + 1);
    Math::multiply(d, stages[now].a, stages[now].b, args.a.k_last, args.b.k_last);
    if (step + 1 < end) write(stages[1 - now]);  // whose readers passed the barrier of the step before
    __syncthreads();
  }
  Target t{args.c, args.bias, args.m, args.n, false};
  if (args.partials) t.c = {args.partials + (size_t)blockIdx.z * args.m * args.n, FLOAT32, 0}, t.bias = {};
  t.pairs = args.n % 2 == 0 && (uintptr_t)t.c.p % 8 == 0;
  Math::store(t, m, n, d);
}

extern "C" __global__ void __launch_bounds__(THREADS) matmul_bf16(const __grid_constant__ MatmulArgs a) { matmul<Bf16>(a); }
KERNEL_EXPORT(matmul_bf16)
extern "C" __global__ void __launch_bounds__(THREADS) matmul_tf32(const __grid_constant__ MatmulArgs a) { matmul<Tf32>(a); }
KERNEL_EXPORT(matmul_tf32)
extern "C" __global__ void __launch_bounds__(THREADS) matmul_f32(const __grid_constant__ MatmulArgs a) { matmul<F32>(a); }
KERNEL_EXPORT(matmul_f32)

struct SlicesArgs {
  const float *partials;
  Operand c, bias;
  Divide n;
  uint32_t elements, slices, pad;
};
static_assert(sizeof(SlicesArgs) == 64, "cuda/src/matmul.rs asserts the same");

// c = sum of slices, in order, + bias: an element a thread.
extern "C" __global__ void __launch_bounds__(256) matmul_slices(const __grid_constant__ SlicesArgs a) {
  for (uint32_t i = thread_in_grid(); i < a.elements; i += threads_in_grid()) {
    float sum = a.partials[i];
#pragma unroll 4
    for (uint32_t s = 1; s < a.slices; s++) sum += a.partials[(size_t)s * a.elements + i];
    set(a.c, i, a.bias.p ? sum + get(a.bias, i - i / a.n * a.n.divisor) : sum);
  }
}
KERNEL_EXPORT(matmul_slices)
