// Streams and events.
#include "driver.h"

namespace simgpu {
Stream &legacy_stream(Context &context) {
  std::shared_ptr<Stream> &s = driver().legacy[&context];
  if (!s) {
    s = std::make_shared<Stream>();
    s->context = &context, s->legacy = true;
  }
  return *s;
}

// Null and 1 name the legacy stream, 2 the thread's own default stream.
Stream *find_stream(Context &context, void *handle) {
  if ((uintptr_t)handle <= 1) return &legacy_stream(context);
  if ((uintptr_t)handle != 2) return driver().streams.find(handle);
  std::shared_ptr<Stream> &s = driver().per_thread[{&context, std::this_thread::get_id()}];
  if (!s) s = std::make_shared<Stream>(), s->context = &context, s->id = ++driver().ids;
  return s.get();
}

namespace {
bool blocks(const Stream &s) { return !s.legacy && !(s.flags & CU_STREAM_NON_BLOCKING); }

template <class F> void each_stream(Device *device, Context *context, F f) {
  Driver &d = driver();
  auto visit = [&](Stream &s) {
    if (s.context == context || (device && s.context->device == device)) f(s);
  };
  for (const auto &s : d.streams.live) visit(*s.second);
  for (const auto &s : d.per_thread) visit(*s.second);
  for (const auto &s : d.legacy) visit(*s.second);
}

// Work in the legacy stream would have to follow work that is only being captured.
int check_implicit(const Stream &stream) {
  if (!stream.legacy) return CUDA_SUCCESS;
  int result = CUDA_SUCCESS;
  each_stream(nullptr, stream.context, [&](Stream &s) {
    if (blocks(s) && s.capture) invalidate(*s.capture), result = CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
  });
  return result;
}

// Whether the op is done; a question lets the device go on, so that who asks in a loop gets an answer.
int query(Lock &lock, const Ref &op) {
  if (op && !op->done) step(lock);
  return !op || op->done ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
}  // namespace

Ref enqueue(Stream &stream, Work work, const std::vector<Ref> &roots) {
  std::vector<Ref> after = roots;
  after.push_back(stream.last);
  if (stream.legacy) {
    each_stream(nullptr, stream.context, [&](Stream &s) {
      if (blocks(s)) after.push_back(s.last);
    });
  } else if (blocks(stream)) {
    after.push_back(legacy_stream(*stream.context).last);
  }
  return stream.last = add_op(std::move(work), after);
}

int submit(Lock &lock, Stream &stream, Work work) {
  if (stream.capture) return capture_work(stream, std::move(work));
  if (const int error = check_implicit(stream)) return error;
  enqueue(stream, std::move(work));
  run_some(lock);
  return CUDA_SUCCESS;
}

void wait_for_device(Lock &lock, Device &device) {
  std::vector<Ref> newest = std::move(device.orphans);
  device.orphans.clear();
  each_stream(&device, nullptr, [&](Stream &s) { newest.push_back(s.last); });
  for (const Ref &op : newest) wait_for(lock, op);
}
}  // namespace simgpu
using namespace simgpu;

CUDA_API cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  return in_context(__func__, [&](Lock &, Context &context) {
    if (!out || flags > CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
    auto s = std::make_shared<Stream>();
    s->context = &context, s->flags = flags, s->id = ++driver().ids;
    s->priority = priority > 0 ? 0 : priority < -5 ? -5 : priority;
    *out = driver().streams.add(s);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamCreate(void **out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }
CUDA_API cuStreamDestroy_v2(void *handle) {  // what was submitted still runs
  return in_context(__func__, [&](Lock &, Context &) {
    Stream *s = driver().streams.find(handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) invalidate(*s->capture);
    if (s->last && !s->last->done) s->context->device->orphans.push_back(s->last);
    driver().streams.remove(handle);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamSynchronize(void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) return invalidate(*s->capture), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (const int error = check_implicit(*s)) return error;
    if (const int error = forbid_in_capture()) return error;
    wait_for(lock, s->legacy ? enqueue(*s, Work{}) : s->last);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamQuery(void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (s->capture) return invalidate(*s->capture), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (const int error = check_implicit(*s)) return error;
    if (const int error = forbid_in_capture()) return error;
    return query(lock, s->last);
  });
}
CUDA_API cuStreamWaitEvent(void *handle, void *event, unsigned flags) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    const std::shared_ptr<Event> e = driver().events.keep(event);
    if (!s || !e) return CUDA_ERROR_INVALID_HANDLE;
    if (flags > CU_EVENT_WAIT_EXTERNAL) return CUDA_ERROR_INVALID_VALUE;
    if (s->capture && flags) return invalidate(*s->capture), CUDA_ERROR_NOT_SUPPORTED;
    if (s->capture || e->capture) return wait_in_capture(*s, *e);
    if (const int error = check_implicit(*s)) return error;
    if (!e->op || e->op->done) return CUDA_SUCCESS;
    enqueue(*s, Work{}, {e->op});
    run_some(lock);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamGetFlags(void *handle, unsigned *flags) {
  return in_context(__func__, [&](Lock &, Context &context) {
    const Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *flags = s->flags;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamGetPriority(void *handle, int *priority) {
  return in_context(__func__, [&](Lock &, Context &context) {
    const Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *priority = s->priority;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamGetCtx(void *handle, void **out) {
  return in_context(__func__, [&](Lock &, Context &context) {
    const Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *out = s->context;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuStreamGetId(void *handle, unsigned long long *id) {
  return in_context(__func__, [&](Lock &, Context &context) {
    const Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    *id = s->id;
    return CUDA_SUCCESS;
  });
}
CUDA_API cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    Stream *s = find_stream(context, handle);
    if (!s) return CUDA_ERROR_INVALID_HANDLE;
    if (!function) return CUDA_ERROR_INVALID_VALUE;
    Work work;
    work.type = CU_GRAPH_NODE_TYPE_HOST;
    work.device = context.device;
    work.own_thread = true;
    work.run = [=](uint64_t) { return function(data), Failure{}; };
    return submit(lock, *s, work);
  });
}

CUDA_API cuEventCreate(void **out, unsigned flags) {
  return in_context(__func__, [&](Lock &, Context &context) {
    if (!out || flags > 7 || ((flags & CU_EVENT_INTERPROCESS) && !(flags & CU_EVENT_DISABLE_TIMING))) return CUDA_ERROR_INVALID_VALUE;
    auto e = std::make_shared<Event>();
    e->context = &context, e->flags = flags;
    *out = driver().events.add(e);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuEventDestroy_v2(void *handle) {
  return in_context(__func__, [&](Lock &, Context &) { return driver().events.remove(handle) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE; });
}
CUDA_API cuEventRecordWithFlags(void *handle, void *stream, unsigned flags) {
  return in_context(__func__, [&](Lock &lock, Context &context) -> int {
    const std::shared_ptr<Event> e = driver().events.keep(handle);
    Stream *s = find_stream(context, stream);
    if (!e || !s || e->context != s->context) return CUDA_ERROR_INVALID_HANDLE;
    if (flags > CU_EVENT_RECORD_EXTERNAL) return CUDA_ERROR_INVALID_VALUE;
    if (s->capture && flags) {  // a node that records when the graph runs
      Work work;
      work.type = CU_GRAPH_NODE_TYPE_EVENT_RECORD;
      work.run = [e](uint64_t) -> Failure {
        Lock lock(queue_mutex());
        e->capture = nullptr;
        e->op = std::make_shared<Op>();
        e->op->done = true;
        e->op->when = std::chrono::steady_clock::now();
        return {};
      };
      return capture_work(*s, work);
    }
    if (s->capture) {
      e->capture = s->capture, e->frontier = s->frontier, e->op = nullptr;
      return CUDA_SUCCESS;
    }
    if (const int error = check_implicit(*s)) return error;
    e->capture = nullptr, e->frontier.clear();
    e->op = enqueue(*s, Work{});
    run_some(lock);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuEventRecord(void *handle, void *stream) { return cuEventRecordWithFlags(handle, stream, 0); }
CUDA_API cuEventQuery(void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &) -> int {
    const Event *e = driver().events.find(handle);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (e->capture) return invalidate(*e->capture), CUDA_ERROR_CAPTURED_EVENT;
    if (const int error = forbid_in_capture()) return error;
    return query(lock, e->op);
  });
}
CUDA_API cuEventSynchronize(void *handle) {
  return in_context(__func__, [&](Lock &lock, Context &) -> int {
    const Event *e = driver().events.find(handle);
    if (!e) return CUDA_ERROR_INVALID_HANDLE;
    if (e->capture) return invalidate(*e->capture), CUDA_ERROR_CAPTURED_EVENT;
    if (const int error = forbid_in_capture()) return error;
    wait_for(lock, e->op);
    return CUDA_SUCCESS;
  });
}
CUDA_API cuEventElapsedTime_v2(float *ms, void *from, void *to) {
  return in_context(__func__, [&](Lock &, Context &) {
    const Event *a = driver().events.find(from), *b = driver().events.find(to);
    if (!a || !b || !a->op || !b->op || ((a->flags | b->flags) & CU_EVENT_DISABLE_TIMING)) return CUDA_ERROR_INVALID_HANDLE;
    if (!a->op->done || !b->op->done) return CUDA_ERROR_NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(b->op->when - a->op->when).count();
    return CUDA_SUCCESS;
  });
}
CUDA_API cuEventElapsedTime(float *ms, void *from, void *to) { return cuEventElapsedTime_v2(ms, from, to); }
