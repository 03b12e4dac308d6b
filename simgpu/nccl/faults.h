// Faults on order. SIMNCCL_FAULT="rank=1,op=all_reduce,seq=40,do=hang;…": what a rank does at a collective. `op` missing: any;
// `seq`: the how manyth of these collectives of the communicator, from 0, in order of running; missing: each of them.
#pragma once
#include <cstdint>

namespace simnccl {
enum class Act { none, hang, delay, async_error, wrong_bits, leave };
struct Fault {
  Act act = Act::none;
  int delay_ms = 0;
};
// At collective number `of_kind` of its kind, number `of_all` of all, counted from 0.
Fault fault_at(int rank, const char *kind, uint64_t of_kind, uint64_t of_all);
bool abort_hangs(int rank);
}  // namespace simnccl
