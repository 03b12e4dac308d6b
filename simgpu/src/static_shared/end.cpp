// Linked after the kernels, see begin.cpp.
extern thread_local char simgpu_shared_end[16];
thread_local char simgpu_shared_end[16];
