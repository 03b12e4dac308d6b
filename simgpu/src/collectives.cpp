// What threads of a block do together, and the asynchronous copies of each.
#include "engine.h"
#include <cstdlib>

namespace simgpu {
void open_barrier() {
  engine->at_barrier = 0;
  engine->barrier_generation++;
  for (unsigned i = 0; i < engine->threads; i++) {
    Fiber &t = engine->fibers[i];
    if (t.at_barrier) t.at_barrier = false, t.state = State::ready;
  }
}

void fail(const char *what, const char *at) {
  if (engine->error.empty()) engine->error = std::string(what) + " at " + at + place(fiber());
  wait(at);
  abort();
}

void barrier(const char *at) {
  Engine *e = engine;
  char *edge = &e->barrier_order[e->barrier_generation & 1];
  release(edge);
  if (e->at_barrier == 0) e->barrier_at = at;
  else if (strcmp(e->barrier_at, at)) fail("threads wait at different __syncthreads()", at);
  if (e->live < e->threads) fail("__syncthreads() after threads have ended", at);
  fiber()->at_barrier = true;
  if (++e->at_barrier == e->threads) {
    open_barrier();
  } else {
    wait(at);
  }
  acquire(edge);
}

void collective(unsigned mask, const char *kind, void *operand, void (*all)(void **), const char *at) {
  Fiber *t = fiber();
  const unsigned first = t->linear / WARP * WARP, size = engine->threads - first;
  const unsigned present = size >= WARP ? ~0u : (1u << size) - 1;
  mask &= present;
  if (!(mask >> t->lane & 1)) fail("lane is not in its own mask", at);
  Meeting &m = engine->warps[t->linear / WARP].by_first_lane[__builtin_ctz(mask)];
  char *edge = &m.order[m.generation & 1];
  release(edge);
  if (m.arrived == 0) {
    m.kind = kind, m.mask = mask;
    for (void *&o : m.operands) o = nullptr;
  } else if (m.mask != mask || strcmp(m.kind, kind)) {
    fail("lanes of a warp are at different operations", at);
  }
  m.operands[t->lane] = operand;
  if (++m.arrived == (unsigned)__builtin_popcount(mask)) {
    acquire(edge);
    if (all) all(m.operands);
    release(edge);
    m.arrived = 0;
    m.generation++;
    for (unsigned l = 0; l < WARP; l++) {
      if ((mask >> l & 1) && l != t->lane) engine->fibers[first + l].state = State::ready;
    }
  } else {
    wait(at);
  }
  acquire(edge);
}

bool async_is_early() {
  const Schedule &s = engine->schedule;
  return s.async == Schedule::early || (s.async == Schedule::mixed && engine->below(2));
}
void async_push(const AsyncCopy &copy, const char *at) {
  Fiber *t = fiber();
  if (t->copies.size() - t->oldest >= 256) fail("over 256 cp.async outstanding in one thread", at);
  t->copies.push_back(copy);
  t->groups.push_back(t->group);
}
void async_commit() { fiber()->group++; }
bool async_pop(int groups_left, AsyncCopy *copy) {
  Fiber *t = fiber();
  if (t->oldest == t->copies.size()) {
    t->copies.clear(), t->groups.clear(), t->oldest = 0;
    return false;
  }
  if (t->groups[t->oldest] + groups_left >= t->group) return false;
  *copy = t->copies[t->oldest++];
  return true;
}
}  // namespace simgpu
