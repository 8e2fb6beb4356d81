// Several elements in one memory access.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

// kCount elements as they lie in memory. Loaded ahead of their use, they stay whole words, which wait for the load only
// where they are widened.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Packed {
  static constexpr int kWords = static_cast<int>(sizeof(T)) * kCount / 4;
  uint32_t words[kWords];

  __device__ float operator[](int i) const {
    if constexpr (sizeof(T) == 4) {
      return __uint_as_float(words[i]);
    } else if constexpr (std::is_same_v<T, __half>) {
      return __half2float(__ushort_as_half(static_cast<uint16_t>(i % 2 == 0 ? words[i / 2] : words[i / 2] >> 16)));
    } else {
      return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
    }
  }
  __device__ void set(int i, T v) {
    if constexpr (sizeof(T) == 4) {
      words[i] = __float_as_uint(v);
    } else {
      const uint32_t bits = bits_of(v), shift = i % 2 * 16;
      words[i / 2] = (words[i / 2] & ~(0xffffu << shift)) | bits << shift;
    }
  }

 private:
  static __device__ uint16_t bits_of(T v) {
    if constexpr (std::is_same_v<T, __half>) {
      return __half_as_ushort(v);
    } else {
      return __bfloat16_as_ushort(v);
    }
  }
};

template <int kCount, typename T>
__device__ Packed<T, kCount> load_packed(const T* p) {
  return *reinterpret_cast<const Packed<T, kCount>*>(p);
}

// Elements of T in 16 bytes.
template <typename T>
constexpr int kVecOf16Bytes = 16 / static_cast<int>(sizeof(T));

// One element, or several in accesses of up to 16 bytes.
template <int kCount, typename T>
__device__ void load_floats(const T* p, float (&to)[kCount]) {
  if constexpr (kCount == 1) {
    to[0] = to_float(*p);
  } else {
    constexpr int kPart = kCount < kVecOf16Bytes<T> ? kCount : kVecOf16Bytes<T>;
#pragma unroll
    for (int i = 0; i < kCount; i += kPart) {
      const auto part = load_packed<kPart>(p + i);
#pragma unroll
      for (int k = 0; k < kPart; ++k) to[i + k] = part[k];
    }
  }
}

template <int kCount, typename T>
__device__ void store_floats(T* p, const float (&from)[kCount]) {
  if constexpr (kCount == 1) {
    *p = from_float<T>(from[0]);
  } else {
    constexpr int kPart = kCount < kVecOf16Bytes<T> ? kCount : kVecOf16Bytes<T>;
#pragma unroll
    for (int i = 0; i < kCount; i += kPart) {
      Packed<T, kPart> part = {};
#pragma unroll
      for (int k = 0; k < kPart; ++k) part.set(k, from_float<T>(from[i + k]));
      *reinterpret_cast<Packed<T, kPart>*>(p + i) = part;
    }
  }
}

inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace m4j::cuda
