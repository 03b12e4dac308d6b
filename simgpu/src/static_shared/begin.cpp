// Linked before the kernels: from here to end.cpp's mark lie the static shared arrays of all kernels, once per OS thread.
extern thread_local char simgpu_shared_begin[16];
thread_local char simgpu_shared_begin[16];
