// Graphs: what they hold, executable graphs, launches and updates.
#include "graph.h"

namespace simgpu {
namespace {
std::map<void *, size_t> places_of(const Graph &graph) {
  std::map<void *, size_t> places;
  for (const auto &n : graph.nodes) {
    const size_t place = places.size();
    places[n.get()] = place;
  }
  return places;
}

std::shared_ptr<GraphExec> instantiate(const Graph &graph) {
  auto exec = std::make_shared<GraphExec>();
  exec->places = places_of(graph);
  exec->nodes = graph.nodes;
  for (const auto &n : graph.nodes) {
    exec->work.push_back(n->work);
    exec->after.emplace_back();
    for (Node *before : n->after) exec->after.back().push_back(exec->places[before]);
  }
  return exec;
}

CUkernelNodeParams params_of(LaunchCall &call) {
  const Launch &l = call.launch;
  call.args_pointer = call.args.data();
  CUkernelNodeParams p{};
  p.function = call.function;
  p.grid_x = l.grid.x, p.grid_y = l.grid.y, p.grid_z = l.grid.z;
  p.block_x = l.block.x, p.block_y = l.block.y, p.block_z = l.block.z;
  p.shared_bytes = l.shared_bytes;
  p.kernel_params = &call.args_pointer;
  return p;
}

int set_params(Work &work, const CUkernelNodeParams &p) {
  if (work.type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
  CUlaunchConfig config{p.grid_x, p.grid_y, p.grid_z, p.block_x, p.block_y, p.block_z, p.shared_bytes, nullptr, nullptr, 0};
  std::shared_ptr<LaunchCall> launch;
  if (const int error = prepare_launch(p.function, config, p.kernel_params, p.extra, &launch)) return error;
  work = kernel_work(work.device, launch);
  return CUDA_SUCCESS;
}

template <class T> int list(const std::vector<T> &from, T *to, size_t *count) {
  if (!count) return CUDA_ERROR_INVALID_VALUE;
  if (!to) return *count = from.size(), CUDA_SUCCESS;
  for (size_t i = 0; i < *count; i++) to[i] = i < from.size() ? from[i] : nullptr;
  *count = *count < from.size() ? *count : from.size();
  return CUDA_SUCCESS;
}
}  // namespace
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuGraphInstantiateWithFlags(void **out, void *handle, unsigned long long flags) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Graph *graph = driver().graphs.find(handle);
    if (!graph || !out) return CUDA_ERROR_INVALID_VALUE;
    if (flags > 15 || (flags & 5) == 5 || (flags & 4)) return CUDA_ERROR_INVALID_VALUE;  // 4: launches by the device
    *out = driver().execs.add(instantiate(*graph));
    return CUDA_SUCCESS;
  });
}
CUDA_API cuGraphInstantiate(void **out, void *graph, unsigned long long flags) { return cuGraphInstantiateWithFlags(out, graph, flags); }
CUDA_API cuGraphUpload(void *handle, void *stream) {
  return in_context(__func__, [&](Lock &, Context &context) {
    if (!driver().execs.find(handle)) return CUDA_ERROR_INVALID_VALUE;
    return find_stream(context, stream) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
  });
}
CUDA_API cuGraphLaunch(void *handle, void *stream) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    const std::shared_ptr<GraphExec> exec = driver().execs.keep(handle);
    Stream *s = find_stream(context, stream);
    if (!exec) return CUDA_ERROR_INVALID_VALUE;
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) return invalidate(*s->capture), CUDA_ERROR_NOT_SUPPORTED;
    if (const int error = submit(lock, *s, Work{})) return error;
    const Ref root = enqueue(*s, Work{}, {exec->newest});
    std::vector<Ref> ops;
    std::vector<bool> last(exec->work.size(), true);
    for (size_t i = 0; i < exec->work.size(); i++) {
      std::vector<Ref> after{root};
      for (const size_t before : exec->after[i]) after.push_back(ops[before]), last[before] = false;
      ops.push_back(add_op(exec->work[i], after));
    }
    std::vector<Ref> ends{root};
    for (size_t i = 0; i < ops.size(); i++)
      if (last[i]) ends.push_back(ops[i]);
    s->last = exec->newest = add_op(Work{}, ends);
    run_some(lock);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuGraphExecDestroy(void *handle) {
  return in_context(__func__, [&](Lock &, Context &) { return driver().execs.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE; });
}
CUDA_API cuGraphDestroy(void *handle) {
  return in_context(__func__, [&](Lock &, Context &) {
    const std::shared_ptr<Graph> graph = driver().graphs.keep(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    for (const auto &n : graph->nodes) driver().nodes.remove(n.get());
    driver().graphs.remove(handle);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    const Graph *graph = driver().graphs.find(handle);
    if (!graph) return CUDA_ERROR_INVALID_VALUE;
    std::vector<void *> all;
    for (const auto &n : graph->nodes) all.push_back(n.get());
    return list(all, nodes, count);
  });
}
CUDA_API cuGraphGetEdges_v2(void *handle, void **from, void **to, void *, size_t *count) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    const Graph *graph = driver().graphs.find(handle);
    if (!graph || !count) return CUDA_ERROR_INVALID_VALUE;
    std::vector<void *> all_from, all_to;
    for (const auto &n : graph->nodes)
      for (Node *before : n->after) all_from.push_back(before), all_to.push_back(n.get());
    size_t again = *count;
    list(all_to, to, &again);
    return list(all_from, from, count);
  });
}
CUDA_API cuGraphNodeGetDependencies_v2(void *handle, void **nodes, void *, size_t *count) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    const Node *node = driver().nodes.find(handle);
    if (!node) return CUDA_ERROR_INVALID_VALUE;
    return list(std::vector<void *>(node->after.begin(), node->after.end()), nodes, count);
  });
}
CUDA_API cuGraphNodeGetType(void *handle, int *type) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Node *node = driver().nodes.find(handle);
    if (!node) return CUDA_ERROR_INVALID_VALUE;
    *type = node->work.type;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuGraphKernelNodeGetParams_v2(void *handle, CUkernelNodeParams *params) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Node *node = driver().nodes.find(handle);
    if (!node || !node->work.launch) return CUDA_ERROR_INVALID_VALUE;
    *params = params_of(*node->work.launch);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuGraphKernelNodeSetParams_v2(void *handle, const CUkernelNodeParams *params) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    Node *node = driver().nodes.find(handle);
    return node && params ? set_params(node->work, *params) : CUDA_ERROR_INVALID_VALUE;
  });
}
CUDA_API cuGraphExecKernelNodeSetParams_v2(void *handle, void *node, const CUkernelNodeParams *params) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    GraphExec *exec = driver().execs.find(handle);
    if (!exec || !exec->places.count(node) || !params) return CUDA_ERROR_INVALID_VALUE;
    return set_params(exec->work[exec->places[node]], *params);
  });
}
// Takes over the parameters of a graph of the same shape.
CUDA_API cuGraphExecUpdate_v2(void *handle, void *graph_handle, CUgraphExecUpdateResultInfo *info) {
  return in_context(__func__, [&](Lock &, Context &) -> int {
    GraphExec *exec = driver().execs.find(handle);
    const Graph *graph = driver().graphs.find(graph_handle);
    if (!exec || !graph) return CUDA_ERROR_INVALID_VALUE;
    std::shared_ptr<GraphExec> now = instantiate(*graph);
    int result = now->after == exec->after ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED;
    void *node = nullptr;
    for (size_t i = 0; !result && i < now->work.size(); i++) {
      if (now->work[i].type != exec->work[i].type) result = CU_GRAPH_EXEC_UPDATE_ERROR_NODE_TYPE_CHANGED, node = now->nodes[i].get();
    }
    if (info) *info = {result, node, nullptr};
    if (result) return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
    exec->work = now->work;
    return CUDA_SUCCESS;
  });
}
