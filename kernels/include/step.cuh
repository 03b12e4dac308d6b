// What the host writes before a list of launches (plan::Scalars), and weights and divisors that read it.
#pragma once
#include "target.cuh"

constexpr int MAX_SLOTS = 64;
struct Scalars {
  double slot[MAX_SLOTS];
  uint32_t micro;       // number of the micro-batch that a body runs for, over the global batch
  uint32_t leaves;      // micro-batches of the global batch
  uint32_t before[2];   // units of each role in the micro-batches before this one
  uint32_t full_units;  // most units of role 0 in any micro-batch
  uint32_t running;     // micro-batches, the first ones, by which running statistics move
  uint32_t pad[2];
  // then units of each micro-batch: uint32_t [leaves][2]
};
static_assert(sizeof(Scalars) == 544, "cuda/src/scalars.rs has the same");
DEVICE const uint32_t *micro_units(const Scalars *s) { return reinterpret_cast<const uint32_t *>(s + 1); }

// graph::Weight: a constant, or a constant times a slot.
struct Weight {
  double factor;
  int32_t slot;  // -1: none
  int32_t pad;
};
static_assert(sizeof(Weight) == 16, "cuda/src/scalars.rs has the same");
DEVICE double value(const Weight &w, const Scalars *s) { return w.slot < 0 ? w.factor : w.factor * s->slot[w.slot]; }

// graph::Divisor: the count that a mean divides by. Slots 1 and 2 hold the units of the global batch.
struct Divisor {
  double constant, per_unit[2];
};
DEVICE double value(const Divisor &d, const Scalars *s) {
  return d.constant + d.per_unit[0] * s->slot[1] + d.per_unit[1] * s->slot[2];
}

// Rows of a carried value of `rows` rows that are valid in micro-batch m: fewer where the micro-batch is short.
DEVICE uint32_t valid_rows(const Scalars *s, uint32_t rows, uint32_t m) {
  const uint32_t full = s->full_units ? s->full_units : 1, per_unit = rows / full ? rows / full : 1;
  const uint32_t valid = micro_units(s)[2 * m] * per_unit;
  return rows < valid ? rows : valid;
}
