// Capture into graphs, their launches and updates, and the rules that make a capture fail.
#include "check.h"
#include <thread>

static Handle begin(int mode = CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) {
  const Handle s = new_stream();
  OK(cuStreamBeginCapture_v2(s, mode));
  return s;
}

static void fork_and_join(const Gpu &gpu) {
  const CUdeviceptr a = device_floats(), b = device_floats(), c = device_floats(), d = device_floats();
  const Handle s = new_stream(), t = new_stream(), fork = new_event(), done = new_event();
  OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(gpu.add(c, a, 1, s));
  OK(cuEventRecord(fork, s));
  OK(cuStreamWaitEvent(t, fork, 0));
  int status = -1;
  OK(cuStreamIsCapturing(t, &status));
  EQUAL(status, CU_STREAM_CAPTURE_STATUS_ACTIVE);
  OK(gpu.add(a, b, 10, t));
  OK(cuEventRecord(done, t));
  OK(gpu.add(a, d, 100, s));
  OK(cuStreamWaitEvent(s, done, 0));
  OK(gpu.add(b, c, 0, s));
  Handle graph = nullptr, exec = nullptr;
  OK(cuStreamEndCapture(s, &graph));
  size_t count = 0;
  OK(cuGraphGetNodes(graph, nullptr, &count));
  EQUAL(count, 4);
  std::vector<Handle> nodes(count);
  OK(cuGraphGetNodes(graph, nodes.data(), &count));
  OK(cuGraphNodeGetDependencies_v2(nodes[3], nullptr, nullptr, &count));
  EQUAL(count, 2);
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  OK(cuGraphDestroy(graph));
  OK(cuGraphExecDestroy(exec));
  EQUAL(cuGraphLaunch(exec, s), CUDA_ERROR_INVALID_VALUE);
}

// Two branches, joined; launched again and again between other work of its stream.
static void launches(const Gpu &gpu) {
  const CUdeviceptr a = device_floats(), b = device_floats(), c = device_floats();
  const Handle s = new_stream(), t = new_stream(), fork = new_event(), done = new_event();
  OK(cuMemsetD32Async(c, 0, N, s));
  OK(cuStreamSynchronize(s));
  OK(cuStreamBeginCapture_v2(s, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
  OK(cuEventRecord(fork, s));
  OK(cuStreamWaitEvent(t, fork, 0));
  OK(gpu.add(c, a, 1, s));
  OK(gpu.add(c, b, 2, t));
  OK(cuEventRecord(done, t));
  OK(cuStreamWaitEvent(s, done, 0));
  OK(gpu.add(a, c, 0, s));
  OK(cuMemcpyDtoDAsync_v2(a, b, N * 4, s));
  Handle graph = nullptr, exec = nullptr;
  OK(cuStreamEndCapture(s, &graph));
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  EQUAL(cuGraphInstantiateWithFlags(&exec, graph, 1 | 4), CUDA_ERROR_INVALID_VALUE);
  OK(cuGraphInstantiateWithFlags(&exec, graph, 0));
  for (int i = 1; i <= 5; i++) {
    OK(cuGraphLaunch(exec, s));
    OK(gpu.add(c, c, 100, s));
    EQUAL(all_are(read_back(c, s), 101 * i), true);
    EQUAL(all_are(read_back(a, s), 101 * (i - 1) + 2), true);
  }
  // One executable graph launched in two streams: the launches follow each other.
  OK(cuMemsetD32Async(c, 0, N, s));
  OK(cuStreamSynchronize(s));
  OK(cuGraphLaunch(exec, s));
  OK(cuGraphLaunch(exec, t));
  OK(cuStreamSynchronize(s));
  EQUAL(all_are(read_back(c, t), 2), true);

  // Other arguments for one node, then all of a graph of the same shape.
  Handle nodes[4];
  size_t count = 4;
  OK(cuGraphGetNodes(graph, nodes, &count));
  int type = -1;
  OK(cuGraphNodeGetType(nodes[3], &type));
  EQUAL(type, CU_GRAPH_NODE_TYPE_MEMCPY);
  CUkernelNodeParams params;
  OK(cuGraphKernelNodeGetParams_v2(nodes[0], &params));
  TestArgs args = *(const TestArgs *)params.kernel_params[0];
  EQUAL(args.value, 1);
  args.value = 50;
  void *pointers[] = {&args};
  params.kernel_params = pointers;
  OK(cuGraphExecKernelNodeSetParams_v2(exec, nodes[0], &params));
  OK(cuMemsetD32Async(c, 0, N, s));
  OK(cuGraphLaunch(exec, s));
  EQUAL(all_are(read_back(c, s), 50), true);
  CUgraphExecUpdateResultInfo info;
  OK(cuGraphExecUpdate_v2(exec, graph, &info));
  OK(cuMemsetD32Async(c, 0, N, s));
  OK(cuGraphLaunch(exec, s));
  EQUAL(all_are(read_back(c, s), 1), true);
  const Handle u = begin();
  OK(gpu.add(c, a, 1, u));
  Handle other = nullptr;
  OK(cuStreamEndCapture(u, &other));
  EQUAL(cuGraphExecUpdate_v2(exec, other, &info), CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
  EQUAL(info.result, CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);
}

static void fails(Handle s, int expected) {
  Handle graph = &s;
  EQUAL(cuStreamEndCapture(s, &graph), expected);
  EQUAL(graph == nullptr, true);
  int status = -1;
  OK(cuStreamIsCapturing(s, &status));
  EQUAL(status, CU_STREAM_CAPTURE_STATUS_NONE);
}

static void rules(const Gpu &gpu) {
  const CUdeviceptr a = device_floats();
  const Handle other = new_stream(), event = new_event(), outside = new_event();
  OK(cuEventRecord(outside, other));
  OK(cuStreamSynchronize(other));
  Handle s = begin();
  EQUAL(cuStreamBeginCapture_v2(s, 0), CUDA_ERROR_ILLEGAL_STATE);
  EQUAL(cuStreamSynchronize(s), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  EQUAL(gpu.add(0, a, 1, s), CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

  s = begin();
  EQUAL(cuCtxSynchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  CUdeviceptr b = 0;
  s = begin();
  EQUAL(cuMemAlloc_v2(&b, 4), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin();
  EQUAL(cuStreamWaitEvent(s, outside, 0), CUDA_ERROR_STREAM_CAPTURE_ISOLATION);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin();
  float host[N];
  EQUAL(cuMemcpyHtoDAsync_v2(a, host, N * 4, s), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin();
  OK(cuEventRecord(event, s));
  EQUAL(cuEventQuery(event), CUDA_ERROR_CAPTURED_EVENT);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);

  // Work that forked off and never came back; ended in a stream that did not begin it.
  s = begin();
  OK(cuEventRecord(event, s));
  OK(cuStreamWaitEvent(other, event, 0));
  OK(gpu.add(0, a, 1, other));
  fails(s, CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
  int status = -1;
  OK(cuStreamIsCapturing(other, &status));
  EQUAL(status, CU_STREAM_CAPTURE_STATUS_NONE);
  s = begin();
  OK(cuEventRecord(event, s));
  OK(cuStreamWaitEvent(other, event, 0));
  Handle graph = nullptr;
  EQUAL(cuStreamEndCapture(other, &graph), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin();
  const Handle t = begin();
  OK(cuEventRecord(event, s));
  EQUAL(cuStreamWaitEvent(t, event, 0), CUDA_ERROR_STREAM_CAPTURE_MERGE);
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  fails(t, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  EQUAL(cuStreamEndCapture(s, &graph), CUDA_ERROR_ILLEGAL_STATE);

  // The legacy stream would have to wait for a blocking stream.
  const Handle blocking = new_stream(0);
  EQUAL(cuStreamBeginCapture_v2(nullptr, 1), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  OK(cuStreamBeginCapture_v2(blocking, 1));
  EQUAL(gpu.add(0, a, 1, nullptr), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
  fails(blocking, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
}

static void threads(const Gpu &gpu) {
  // A thread-local capture does not mind other threads; a global one does; only the thread that began may end.
  Handle s = begin();
  std::thread([&] {
    OK(cuCtxSetCurrent(gpu.context));
    OK(cuCtxSynchronize());
    Handle graph = nullptr;
    EQUAL(cuStreamEndCapture(s, &graph), CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
  }).join();
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin(CU_STREAM_CAPTURE_MODE_GLOBAL);
  std::thread([&] {
    OK(cuCtxSetCurrent(gpu.context));
    EQUAL(cuCtxSynchronize(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
  }).join();
  fails(s, CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
  s = begin(CU_STREAM_CAPTURE_MODE_RELAXED);
  OK(cuCtxSynchronize());
  Handle graph = nullptr;
  OK(cuStreamEndCapture(s, &graph));
}

int main() {
  Gpu gpu;
  fork_and_join(gpu);
  launches(gpu);
  rules(gpu);
  threads(gpu);
}
