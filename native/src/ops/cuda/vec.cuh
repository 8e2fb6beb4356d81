// Several elements in one memory access.
#pragma once

#include <cstdint>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vec {
  T v[kCount];
};

// Elements of T in 16 bytes.
template <typename T>
constexpr int kVecOf16Bytes = 16 / static_cast<int>(sizeof(T));

template <int kCount, typename T>
__device__ void load_floats(const T* p, float (&to)[kCount]) {
  constexpr int kPart = kCount < kVecOf16Bytes<T> ? kCount : kVecOf16Bytes<T>;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    const auto part = *reinterpret_cast<const Vec<T, kPart>*>(p + i);
#pragma unroll
    for (int k = 0; k < kPart; ++k) to[i + k] = to_float(part.v[k]);
  }
}

template <int kCount, typename T>
__device__ void store_floats(T* p, const float (&from)[kCount]) {
  constexpr int kPart = kCount < kVecOf16Bytes<T> ? kCount : kVecOf16Bytes<T>;
#pragma unroll
  for (int i = 0; i < kCount; i += kPart) {
    Vec<T, kPart> part;
#pragma unroll
    for (int k = 0; k < kPart; ++k) part.v[k] = from_float<T>(from[i + k]);
    *reinterpret_cast<Vec<T, kPart>*>(p + i) = part;
  }
}

inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace m4j::cuda
