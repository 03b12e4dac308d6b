// loss_rows: all row losses of a step and the gradients of their logits, one launch driven by a table. graph::Op RowLosses,
// RowLoss, RowLossGrad; formulas: graph/src/row.rs, METHODS.md chapters 0.3, 7.3, 7.4.
//
// A segment is a run of rows of one logits tensor under the same terms; a role is a term seen from one side of it. A block owns
// one row of a segment: it stages the rows that its roles read, makes the softmax statistics of each (row, temperature) once,
// then each role's value and coefficients, then the gradient, Σ over roles in the table's order, every element written once.
//   logits, probabilities: f32 rows of `width`; labels i32 < classes, negative: none; candidates i32 [n, count]; λ f32 [1];
//   values: f32 [n] of each term, summed in row order by loss_rows_values; grad: f32 [n, classes]; any alignment.
// Every address is that of the segment's first row. A row that a role does not count adds 0 to its value and gradient.
// Bytes moved: each row read once (rows beyond 48 KiB a block are read again, from L2), each gradient row written once.
// Not measured on hardware.
#include "softmax.cuh"
#include "step.cuh"

enum LossKind : uint32_t { CROSS_ENTROPY, KL, TARGET_KL, NON_TARGET_KL, GENERALIZED, BINARY, COUNT };
enum LossTarget : uint32_t { LABEL, MIXED_LABEL, PROBABILITIES, LOGITS };
enum LossMask : uint32_t { ALL, CONFIDENT, LABEL_GREATER, LABEL_GREATER_OR_EQUAL };
enum LossGradient : uint32_t { NO_GRADIENT, BY_STUDENT, BY_TARGET };
constexpr uint32_t NONE = ~0u;

// Rows of floats. `staged`: where a block keeps its row in shared memory, in floats, or NONE.
struct LossRow {
  const float *p;
  uint32_t width, staged;
};
// Softmax of a row over tau, or over tau times the row's deviation; with labels also ln(1 − p_label).
struct LossStats {
  const int32_t *label;
  double tau;
  uint32_t row, by_deviation;
};
struct LossRole {
  const int32_t *label, *second;  // null where the kind has none
  const float *lambda;
  const int32_t *candidates, *mask_label;
  float *value;  // null: another role has the term's value
  Weight weight;
  Divisor divisor;
  float on, off, total, exponent, threshold;  // total: Σ q of a label's target
  uint32_t kind, target, mask, gradient;
  uint32_t z, t;                        // rows of logits and of the target
  uint32_t student, teacher, masks[2];  // statistics
  uint32_t count;                       // candidates, or the class of BINARY
};
struct LossSegment {
  const LossRole *roles;
  const LossStats *stats;
  const LossRow *rows;
  float *grad;  // null: none
  uint32_t n, classes, roles_n, stats_n, rows_n, pad;
};
struct LossRowsArgs {
  const LossSegment *segments;
  const Scalars *scalars;
};
static_assert(sizeof(LossRow) == 16 && sizeof(LossStats) == 24 && sizeof(LossRole) == 152, "cuda/src/loss.rs asserts the same");
static_assert(sizeof(LossSegment) == 56 && sizeof(LossRowsArgs) == 16, "cuda/src/loss.rs asserts the same");

// What a block makes of a LossStats: u = (x − max)/tau, log p = u − log_sum, p = e^u / sum.
struct LossSoftmax {
  double mean, spread;  // by deviation: mean, (k − 1) deviation (deviation + guard); else 0
  float max, tau, sum, log_sum;
  float factor;  // tau² by deviation, else 1
  float log_not, other_max, other_log_sum;  // with a label: ln(1 − p_label), and max and log sum of the other classes
  DEVICE float u(float x) const { return (x - max) / tau; }
  DEVICE float log_p(float x) const { return u(x) - log_sum; }
  DEVICE float p(float x) const { return expf(u(x)) / sum; }
  DEVICE float log_other(float x) const { return (x - other_max) / tau - other_log_sum; }  // renormalised without the label
};
// What a block makes of a LossRole: coefficients of the gradient by u (see `pull`), and what turns it into one by z.
struct LossTerm {
  double along;  // Σ d (z − mean) / spread
  float scale;   // weight / divisor · factor / tau
  int label, second;
  float lambda, total, pivot, mean;
  uint32_t counts;
};
static_assert(sizeof(LossSoftmax) == 48 && sizeof(LossTerm) == 40, "cuda/src/loss.rs counts them");
constexpr double DEVIATION_GUARD = 1e-8;

// A block's memory.
struct LossBlock {
  const LossRole *roles;
  const LossStats *stats;
  const LossRow *rows;
  LossSoftmax *softmax;
  LossTerm *terms;
  const float **row_at;  // the block's row of each of `rows`, in shared memory or not
  uint32_t r;
  DEVICE const float *row(uint32_t i) const { return row_at[i]; }
};

template <int THREADS> DEVICE void copy_words(void *to, const void *from, size_t bytes) {
  for (uint32_t i = threadIdx.x; i < bytes / 4; i += THREADS) ((uint32_t *)to)[i] = ((const uint32_t *)from)[i];
}

template <int THREADS>
DEVICE LossSoftmax softmax_of(const LossStats &s, const float *z, uint32_t k, uint32_t r, double *scratch) {
  LossSoftmax m{};
  double tau = s.tau;
  if (s.by_deviation) {
    double sum = 0.0, squares = 0.0;
    for (uint32_t j = threadIdx.x; j < k; j += THREADS) sum += z[j];
    m.mean = block_sum<THREADS>(sum, scratch) / k;
    for (uint32_t j = threadIdx.x; j < k; j += THREADS) squares += (z[j] - m.mean) * (z[j] - m.mean);
    const double degrees = k - 1.0, deviation = sqrt(block_sum<THREADS>(squares, scratch) / degrees);
    const double guarded = deviation + DEVIATION_GUARD;
    tau *= guarded;
    m.spread = degrees * deviation * guarded;
  }
  m.tau = (float)tau;
  m.factor = s.by_deviation ? (float)(tau * tau) : 1.f;
  const SoftmaxSums all = softmax_sums<THREADS>(z, k, m.tau, -1, (float *)scratch);
  m.max = all.max, m.sum = all.sum, m.log_sum = logf(all.sum);
  if (s.label) {
    const int y = max(s.label[r], 0);
    const SoftmaxSums others = softmax_sums<THREADS>(z, k, m.tau, y, (float *)scratch);
    m.other_max = others.max, m.other_log_sum = logf(others.sum);
    const float p = m.p(z[y]);
    // The logarithm of a sum close to 1 would cancel; so would one minus a p close to 1.
    m.log_not = p < 0.5f ? log1pf(-p) : m.u(others.max) + m.other_log_sum - m.log_sum;
  }
  return m;
}

// Does the row count for the role? A row without any of its labels is padding.
DEVICE bool counts(const LossBlock &b, const LossRole &role, const LossTerm &term) {
  if (role.label && term.label < 0 && term.second < 0) return false;
  if (role.mask == ALL) return true;
  const LossSoftmax &m = b.softmax[role.masks[0]];
  // A row that is not finite counts, so that its loss stops the run instead of being left out.
  if (role.mask == CONFIDENT) return !(1.f / m.sum < role.threshold);
  const int y = role.mask_label[b.r];
  if (y < 0) return false;
  const LossSoftmax &other = b.softmax[role.masks[1]];
  const float p = m.p(b.row(b.stats[role.masks[0]].row)[y]), q = other.p(b.row(b.stats[role.masks[1]].row)[y]);
  return role.mask == LABEL_GREATER ? p > q : p >= q;
}

// The target distribution of class j.
DEVICE float target(const LossBlock &b, const LossRole &role, const LossTerm &term, uint32_t j) {
  switch (role.target) {
    case LABEL: return (int)j == term.label ? role.on : role.off;
    case MIXED_LABEL: return ((int)j == term.label ? term.lambda : 0.f) + ((int)j == term.second ? 1.f - term.lambda : 0.f);
    case PROBABILITIES: return b.row(role.t)[j];
    default: return b.softmax[role.teacher].p(b.row(role.t)[j]);
  }
}

// q (log q − log p), or −q log p of a cross-entropy; 0 log 0 is 0.
DEVICE float divergence(const LossBlock &b, const LossRole &role, float q, uint32_t j) {
  const float log_p = b.softmax[role.student].log_p(b.row(role.z)[j]);
  if (q == 0.f) return 0.f;
  if (role.kind == CROSS_ENTROPY) return -(q * log_p);
  return q * ((role.target == LOGITS ? b.softmax[role.teacher].log_p(b.row(role.t)[j]) : logf(q)) - log_p);
}

// ln p_y and ln(1 − p_y); ln p_y of a p_y close to 1 is exact through 1 − p_y alone.
DEVICE float log_label(const LossSoftmax &s, float x) { return s.log_not < -1.f ? log1pf(-expf(s.log_not)) : s.log_p(x); }

DEVICE float softplus(float z) { return (z > 0.f ? z : 0.f) + log1pf(expf(z < 0.f ? z : -z)); }

// The gradient of the role's row value by u_j of its side.
DEVICE float pull(const LossBlock &b, const LossRole &role, const LossTerm &term, uint32_t j) {
  const float z = b.row(role.z)[j];
  if (role.kind == BINARY) {
    const bool is_class = j == role.count;
    const float small = expf(z < 0.f ? z : -z);
    const float sigmoid = ((is_class ? -z : z) < 0.f ? small : 1.f) / (1.f + small);
    return is_class ? -sigmoid : sigmoid;
  }
  const LossSoftmax &p = b.softmax[role.student];
  switch (role.kind) {
    case TARGET_KL: return (int)j == term.label ? term.pivot : -term.pivot * expf(p.log_other(z));
    case NON_TARGET_KL: {
      const LossSoftmax &q = b.softmax[role.teacher];
      return (int)j == term.label ? 0.f : expf(p.log_other(z)) - expf(q.log_other(b.row(role.t)[j]));
    }
    case GENERALIZED: {
      float d = 0.f;
      for (uint32_t c = 0; c < role.count; c++) {
        if (role.candidates[(size_t)b.r * role.count + c] == (int)j) d -= expf(role.exponent * p.log_p(z)) / role.count;
      }
      return d + term.total * p.p(z);
    }
    default: break;
  }
  if (role.gradient == BY_STUDENT) return term.total * p.p(z) - target(b, role, term, j);
  const LossSoftmax &q = b.softmax[role.teacher];
  const float t = b.row(role.t)[j];
  return q.p(t) * (q.log_p(t) - p.log_p(z) - term.pivot - term.mean);
}

// Cross-entropy and KL: the row value, Σ q, and for a gradient by the target the ratio of the likeliest class and the mean ratio.
template <int THREADS>
DEVICE float distribution(const LossBlock &b, const LossRole &role, LossTerm &term, uint32_t k, double *shared) {
  float *scratch = (float *)shared;
  float value = 0.f;
  term.total = role.target == LABEL ? role.total : 1.f;
  if (role.target == MIXED_LABEL || (role.target == LABEL && role.off == 0.f)) {  // one or two classes: every thread alone
    if (role.target == MIXED_LABEL) {
      term.total = (term.label < 0 ? 0.f : term.lambda) + (term.second < 0 ? 0.f : 1.f - term.lambda);
    }
    if (term.label >= 0) value += divergence(b, role, target(b, role, term, term.label), term.label);
    if (term.second >= 0 && term.second != term.label) {
      value += divergence(b, role, target(b, role, term, term.second), term.second);
    }
    return value;
  }
  float total = 0.f;
  for (uint32_t j = threadIdx.x; j < k; j += THREADS) {
    const float q = target(b, role, term, j);
    total += q;
    if (role.value) value += divergence(b, role, q, j);
  }
  if (role.value) value = block_sum<THREADS>(value, scratch);
  if (role.target == PROBABILITIES) term.total = block_sum<THREADS>(total, scratch);
  if (role.gradient == BY_TARGET) {
    // Ratios relative to that of the likeliest class: no cancellation where q is nearly 1.
    const LossSoftmax &q = b.softmax[role.teacher], &p = b.softmax[role.student];
    const float *t = b.row(role.t), *z = b.row(role.z);
    float pivot = -INFINITY, mean = 0.f;
    for (uint32_t j = threadIdx.x; j < k; j += THREADS) {
      if (t[j] == q.max) pivot = fmaxf(pivot, q.log_p(t[j]) - p.log_p(z[j]));
    }
    term.pivot = block_max<THREADS>(pivot, scratch);
    for (uint32_t j = threadIdx.x; j < k; j += THREADS) mean += q.p(t[j]) * (q.log_p(t[j]) - p.log_p(z[j]) - term.pivot);
    term.mean = block_sum<THREADS>(mean, scratch);
  }
  return value;
}

// The row value; fills the coefficients that `pull` needs.
template <int THREADS>
DEVICE float row_value(const LossBlock &b, const LossRole &role, LossTerm &term, uint32_t k, double *shared) {
  float *scratch = (float *)shared;
  float value = 0.f;
  switch (role.kind) {
    case CROSS_ENTROPY:
    case KL: return distribution<THREADS>(b, role, term, k, shared);
    case TARGET_KL: {
      const LossSoftmax &q = b.softmax[role.teacher], &p = b.softmax[role.student];
      const float log_q = log_label(q, b.row(role.t)[term.label]), log_p = log_label(p, b.row(role.z)[term.label]);
      const float not_q = expf(q.log_not), not_p = expf(p.log_not);
      term.pivot = not_q < expf(log_q) ? not_q - not_p : expf(log_p) - expf(log_q);  // of the smaller numbers: more exact
      return expf(log_q) * (log_q - log_p) + not_q * (q.log_not - p.log_not);
    }
    case NON_TARGET_KL: {
      const LossSoftmax &q = b.softmax[role.teacher], &p = b.softmax[role.student];
      const float *t = b.row(role.t), *z = b.row(role.z);
      for (uint32_t j = threadIdx.x; j < k; j += THREADS) {
        const float log_q = q.log_other(t[j]), log_p = p.log_other(z[j]);
        if ((int)j != term.label) value += expf(log_q) * (log_q - log_p);
      }
      return block_sum<THREADS>(value, scratch);
    }
    case GENERALIZED: {
      float total = 0.f;
      for (uint32_t i = threadIdx.x; i < role.count; i += THREADS) {
        const int c = role.candidates[(size_t)b.r * role.count + i];
        // No candidate: the row of a teacher with a NaN. It must stop the run.
        const float exponent = c < 0 ? NAN : role.exponent * b.softmax[role.student].log_p(b.row(role.z)[c]);
        value -= expm1f(exponent) / role.exponent;
        total += expf(exponent);
      }
      term.total = block_sum<THREADS>(total, scratch) / role.count;
      return block_sum<THREADS>(value, scratch) / role.count;
    }
    case BINARY: {
      const float *z = b.row(role.z);
      for (uint32_t j = threadIdx.x; j < k; j += THREADS) value += softplus(j == role.count ? -z[j] : z[j]);
      return block_sum<THREADS>(value, scratch);
    }
    default: return 1.f;
  }
}

// Makes the LossTerm of a role and writes the row's value.
template <int THREADS>
DEVICE void make_term(const LossBlock &b, uint32_t i, const Scalars *scalars, double *scratch) {
  const LossRole &role = b.roles[i];
  const uint32_t k = b.rows[role.z].width;
  LossTerm term{};
  term.label = role.label ? role.label[b.r] : -1;
  term.second = role.second ? role.second[b.r] : -1;
  term.lambda = role.lambda ? *role.lambda : 0.f;
  term.counts = counts(b, role, term);
  float row = 0.f;
  if (term.counts) {
    const bool between_logits = role.kind == TARGET_KL || role.kind == NON_TARGET_KL || (role.kind == KL && role.target == LOGITS);
    const float factor = between_logits ? b.softmax[role.teacher].factor : 1.f;
    row = factor * row_value<THREADS>(b, role, term, k, scratch);
    if (role.gradient != NO_GRADIENT) {
      const float tau = role.kind == BINARY ? 1.f : b.softmax[role.gradient == BY_TARGET ? role.teacher : role.student].tau;
      term.scale = (float)(value(role.weight, scalars) / value(role.divisor, scalars)) * factor / tau;
    }
    if (role.gradient == BY_STUDENT && role.kind != BINARY && b.softmax[role.student].spread > 0.0) {
      const LossSoftmax &p = b.softmax[role.student];
      const float *z = b.row(role.z);
      double along = 0.0;
      for (uint32_t j = threadIdx.x; j < k; j += THREADS) along += pull(b, role, term, j) * (z[j] - p.mean);
      term.along = block_sum<THREADS>(along, scratch) / p.spread;
    }
  }
  if (threadIdx.x == 0) {
    b.terms[i] = term;
    if (role.value) role.value[b.r] = row;
  }
}

template <int THREADS> DEVICE void loss_rows(const LossRowsArgs &a) {
  DYN_SHARED(unsigned char, memory);
  __shared__ double scratch[32];
  const LossSegment s = a.segments[blockIdx.y];
  if (blockIdx.x >= s.n) return;
  // In the order of crates/cuda/src/loss.rs, which counts the bytes.
  LossRole *roles = (LossRole *)memory;
  LossStats *stats = (LossStats *)(roles + s.roles_n);
  LossRow *rows = (LossRow *)(stats + s.stats_n);
  LossSoftmax *softmax = (LossSoftmax *)(rows + s.rows_n);
  LossTerm *terms = (LossTerm *)(softmax + s.stats_n);
  const float **row_at = (const float **)(terms + s.roles_n);
  float *staged = (float *)(row_at + s.rows_n);
  const LossBlock b{roles, stats, rows, softmax, terms, row_at, blockIdx.x};
  copy_words<THREADS>(roles, s.roles, s.roles_n * sizeof(LossRole));
  copy_words<THREADS>(stats, s.stats, s.stats_n * sizeof(LossStats));
  copy_words<THREADS>(rows, s.rows, s.rows_n * sizeof(LossRow));
  __syncthreads();
  for (uint32_t i = 0; i < s.rows_n; i++) {
    const float *from = rows[i].p + (size_t)b.r * rows[i].width;
    float *to = rows[i].staged == NONE ? nullptr : staged + rows[i].staged;
    for (uint32_t j = threadIdx.x; to && j < rows[i].width; j += THREADS) to[j] = from[j];
    if (threadIdx.x == 0) row_at[i] = to ? to : from;
  }
  __syncthreads();
  for (uint32_t i = 0; i < s.stats_n; i++) {
    const uint32_t row = stats[i].row;
    const LossSoftmax m = softmax_of<THREADS>(stats[i], row_at[row], rows[row].width, b.r, scratch);
    if (threadIdx.x == 0) softmax[i] = m;
  }
  __syncthreads();
  for (uint32_t i = 0; i < s.roles_n; i++) make_term<THREADS>(b, i, a.scalars, scratch);
  if (!s.grad) return;
  __syncthreads();
  for (uint32_t j = threadIdx.x; j < s.classes; j += THREADS) {
    float sum = 0.f;
    for (uint32_t i = 0; i < s.roles_n; i++) {
      const LossTerm &term = terms[i];
      if (roles[i].gradient == NO_GRADIENT || !term.counts) continue;
      float d = pull(b, roles[i], term, j);
      if (term.along != 0.0) d -= (float)(term.along * (b.row(roles[i].z)[j] - softmax[roles[i].student].mean));
      sum += term.scale * d;
    }
    s.grad[(size_t)b.r * s.classes + j] = sum;
  }
}
extern "C" __global__ void __launch_bounds__(32) loss_rows_warp(const __grid_constant__ LossRowsArgs a) { loss_rows<32>(a); }
KERNEL_EXPORT(loss_rows_warp)
// Four blocks a multiprocessor, as shared memory allows: left alone, ptxas aims at five and spills.
extern "C" __global__ void __launch_bounds__(256, 4) loss_rows_block(const __grid_constant__ LossRowsArgs a) { loss_rows<256>(a); }
KERNEL_EXPORT(loss_rows_block)

// The values of terms: Σ over rows / divisor, in f64. A block a term.
struct LossSum {
  const float *rows;
  float *value;
  Divisor divisor;
  uint32_t n, pad;
};
struct LossSumArgs {
  const LossSum *sums;
  const Scalars *scalars;
};
static_assert(sizeof(LossSum) == 48 && sizeof(LossSumArgs) == 16, "cuda/src/loss.rs asserts the same");
extern "C" __global__ void __launch_bounds__(256) loss_rows_values(const __grid_constant__ LossSumArgs a) {
  __shared__ double scratch[32];
  const LossSum s = a.sums[blockIdx.x];
  double sum = 0.0;
  for (uint32_t r = threadIdx.x; r < s.n; r += 256) sum += s.rows[r];
  sum = block_sum<256>(sum, scratch);
  if (threadIdx.x == 0) *s.value = (float)(sum / value(s.divisor, a.scalars));
}
KERNEL_EXPORT(loss_rows_values)
