// Capture of streams into graphs, with the rules that make a capture fail.
#include "graph.h"
#include <algorithm>

namespace simgpu {
namespace {
thread_local CaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

template <class F> void each_capture(F f) {
  auto &all = driver().captures;
  for (size_t i = 0; i < all.size();) {
    const std::shared_ptr<Capture> c = all[i].lock();
    if (c && c->active) f(*c), i++;
    else all.erase(all.begin() + i);
  }
}

void end(Capture &capture) {
  capture.active = false;
  auto leave = [&](Stream &s) {
    if (s.capture.get() != &capture) return;
    s.frontier.clear();
    s.capture = nullptr;
  };
  for (const auto &s : driver().streams.live) leave(*s.second);
  for (const auto &s : driver().per_thread) leave(*s.second);
}

void join(std::vector<Node *> &to, const std::vector<Node *> &from) {
  for (Node *n : from) {
    if (std::find(to.begin(), to.end(), n) == to.end()) to.push_back(n);
  }
}

bool all_joined(const Capture &capture) {
  std::set<Node *> reached;
  std::vector<Node *> open = capture.origin->frontier;
  while (!open.empty()) {
    Node *n = open.back();
    open.pop_back();
    if (reached.insert(n).second) open.insert(open.end(), n->after.begin(), n->after.end());
  }
  return reached.size() == capture.graph->nodes.size();
}
}  // namespace

int forbid_in_capture() {
  if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_SUCCESS;
  int result = CUDA_SUCCESS;
  each_capture([&](Capture &c) {
    const bool ours = c.thread == std::this_thread::get_id() && c.mode != CU_STREAM_CAPTURE_MODE_RELAXED;
    const bool global = c.mode == CU_STREAM_CAPTURE_MODE_GLOBAL && thread_mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (ours || global) c.valid = false, result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
  });
  return result;
}

void invalidate(Capture &capture) { capture.valid = false; }

int capture_work(Stream &stream, Work work) {
  if (!stream.capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  auto node = std::make_shared<Node>(Node{std::move(work), stream.frontier});
  driver().nodes.add(node);
  stream.capture->graph->nodes.push_back(node);
  stream.frontier = {node.get()};
  return CUDA_SUCCESS;
}

int wait_in_capture(Stream &stream, Event &event) {
  if (stream.capture && !stream.capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (!event.capture) {
    if (!event.op) return CUDA_SUCCESS;  // never recorded
    invalidate(*stream.capture);
    return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
  }
  if (!event.capture->active) return CUDA_ERROR_CAPTURED_EVENT;
  if (!event.capture->valid) return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
  if (stream.legacy) return invalidate(*event.capture), CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  if (stream.capture && stream.capture != event.capture) {
    invalidate(*stream.capture), invalidate(*event.capture);
    return CUDA_ERROR_STREAM_CAPTURE_MERGE;
  }
  stream.capture = event.capture;
  join(stream.frontier, event.frontier);
  return CUDA_SUCCESS;
}
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuStreamBeginCapture_v2(void *handle, int mode) {
  return in_context(__func__, [&](Lock &, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    if (s->legacy) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (s->capture) return CUDA_ERROR_ILLEGAL_STATE;
    s->capture = std::make_shared<Capture>(
        Capture{std::make_shared<Graph>(), s, (CaptureMode)mode, std::this_thread::get_id(), ++driver().ids});
    s->frontier.clear();
    driver().captures.push_back(s->capture);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamEndCapture(void *handle, void **graph) {
  return in_context(__func__, [&](Lock &, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *graph = nullptr;
    const std::shared_ptr<Capture> c = s->capture;
    if (!c) return CUDA_ERROR_ILLEGAL_STATE;
    if (c->mode != CU_STREAM_CAPTURE_MODE_RELAXED && c->thread != std::this_thread::get_id()) {
      invalidate(*c);
      return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
    }
    if (c->origin != s) return invalidate(*c), CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
    const int result = !c->valid ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : all_joined(*c) ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    end(*c);
    if (result) {
      for (const auto &n : c->graph->nodes) driver().nodes.remove(n.get());
    } else {
      *graph = driver().graphs.add(c->graph);
    }
    return result;
  });
}
CUDA_API cuStreamIsCapturing(void *handle, int *status) {
  return in_context(__func__, [&](Lock &, Context &context) -> int {
    const Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *status = !s->capture ? CU_STREAM_CAPTURE_STATUS_NONE : s->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    return CUDA_SUCCESS;
  });
}
// The edges' data are all zero: full dependencies.
CUDA_API cuStreamGetCaptureInfo_v3(void *handle, int *status, uint64_t *id, void **graph, void *const **nodes, const void **edges, size_t *count) {
  return in_context(__func__, [&](Lock &, Context &context) -> int {
    const Stream *s = find_stream(context, handle);
    if (!s || !status) return CUDA_ERROR_INVALID_HANDLE;
    *status = CU_STREAM_CAPTURE_STATUS_NONE;
    if (!s->capture) return CUDA_SUCCESS;
    *status = s->capture->valid ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_INVALIDATED;
    if (id) *id = s->capture->id;
    if (graph) *graph = s->capture->graph.get();
    if (nodes) *nodes = (void *const *)s->frontier.data();
    if (edges) *edges = nullptr;
    if (count) *count = s->frontier.size();
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamGetCaptureInfo_v2(void *handle, int *status, uint64_t *id, void **graph, void *const **nodes, size_t *count) {
  return cuStreamGetCaptureInfo_v3(handle, status, id, graph, nodes, nullptr, count);
}
CUDA_API cuThreadExchangeStreamCaptureMode(int *mode) {
  return call(__func__, [&](Lock &) {
    if (*mode < CU_STREAM_CAPTURE_MODE_GLOBAL || *mode > CU_STREAM_CAPTURE_MODE_RELAXED) return CUDA_ERROR_INVALID_VALUE;
    const CaptureMode before = thread_mode;
    thread_mode = (CaptureMode)*mode;
    *mode = before;
    return CUDA_SUCCESS;
  });
}
