// Captured work.
#pragma once
#include "driver.h"

namespace simgpu {
struct Node {
  Work work;
  std::vector<Node *> after;
};
struct Graph {
  std::vector<std::shared_ptr<Node>> nodes;  // each behind those that it depends on
};
struct GraphExec {
  std::vector<Work> work;
  std::vector<std::vector<size_t>> after;  // by place in `work`
  std::map<void *, size_t> places;         // of the nodes that it was made of
  std::vector<std::shared_ptr<Node>> nodes;
  Ref newest;  // launches of one executable graph follow each other
};
struct Capture {
  std::shared_ptr<Graph> graph;
  Stream *origin;
  CaptureMode mode;
  std::thread::id thread;
  uint64_t id;
  bool valid = true, active = true;
};
}  // namespace simgpu
