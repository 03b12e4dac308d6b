// N elements read and written at once: 16 bytes where rows allow, one element where not.
#pragma once
#include "target.cuh"

template <class T, int N> struct alignas(N * sizeof(T)) Lanes {
  T v[N];
};
template <int N, class T> DEVICE Lanes<T, N> load_lanes(const T *p) { return *reinterpret_cast<const Lanes<T, N> *>(p); }
template <int N, class T> DEVICE void store_lanes(T *p, const Lanes<T, N> &v) { *reinterpret_cast<Lanes<T, N> *>(p) = v; }
template <class T> constexpr int LANES_OF = 16 / sizeof(T);
