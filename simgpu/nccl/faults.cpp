#include "faults.h"
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

namespace simnccl {
namespace {
constexpr const char *KINDS[] = {"all_reduce", "broadcast", "all_gather", "reduce_scatter", "reduce"};

struct Order {
  int rank = -1;
  std::string op;
  int64_t sequence = -1;  // -1: each
  Fault fault;
  bool abort_hangs = false;
};

[[noreturn]] void refuse(const std::string &text) {
  fprintf(stderr,
          "simnccl: SIMNCCL_FAULT: %s; expected rank=R[,op=all_reduce|broadcast|all_gather|reduce_scatter|reduce][,seq=N],"
          "do=hang|delay=MS|async_error|abort_hangs|wrong_bits|exit, several with ';' between\n",
          text.c_str());
  exit(2);
}

int64_t number(const std::string &word) {
  char *end = nullptr;
  const long long n = strtoll(word.c_str(), &end, 10);
  if (word.empty() || *end || n < 0) refuse("'" + word + "' is no number");
  return n;
}

void read_act(const std::string &word, Order &order) {
  Fault &f = order.fault;
  if (word == "hang") f.act = Act::hang;
  else if (word == "async_error") f.act = Act::async_error;
  else if (word == "wrong_bits") f.act = Act::wrong_bits;
  else if (word == "exit") f.act = Act::leave;
  else if (word == "abort_hangs") order.abort_hangs = true;
  else if (word.rfind("delay=", 0) == 0) f.act = Act::delay, f.delay_ms = (int)number(word.substr(6));
  else refuse("do=" + word + " is not known");
}

Order read_order(const std::string &text) {
  Order order;
  std::stringstream words(text);
  for (std::string word; std::getline(words, word, ',');) {
    const size_t equals = word.find('=');
    const std::string key = word.substr(0, equals), value = equals == std::string::npos ? "" : word.substr(equals + 1);
    if (key == "rank") order.rank = (int)number(value);
    else if (key == "seq") order.sequence = number(value);
    else if (key == "do") read_act(value, order);
    else if (key == "op") order.op = value;
    else refuse("'" + word + "' is not known");
  }
  bool known = order.op.empty();
  for (const char *kind : KINDS) known = known || order.op == kind;
  if (!known) refuse("op=" + order.op + " is not known");
  if (order.rank < 0 || (order.fault.act == Act::none && !order.abort_hangs)) refuse("'" + text + "' lacks rank or do");
  return order;
}

const std::vector<Order> &orders() {
  static const auto *const all = [] {
    auto *orders = new std::vector<Order>;
    const char *value = getenv("SIMNCCL_FAULT");
    std::stringstream parts(value ? value : "");
    for (std::string part; std::getline(parts, part, ';');) orders->push_back(read_order(part));
    return orders;
  }();
  return *all;
}
}  // namespace

Fault fault_at(int rank, const char *kind, uint64_t of_kind, uint64_t of_all) {
  for (const Order &o : orders()) {
    if (o.rank != rank || o.fault.act == Act::none || (!o.op.empty() && o.op != kind)) continue;
    if (o.sequence < 0 || (uint64_t)o.sequence == (o.op.empty() ? of_all : of_kind)) return o.fault;
  }
  return {};
}

bool abort_hangs(int rank) {
  for (const Order &o : orders())
    if (o.rank == rank && o.abort_hangs) return true;
  return false;
}
}  // namespace simnccl
