// Several elements in one memory access.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

// kCount elements as they lie in memory, read and written 16 bytes at a time or less. Loaded ahead of their use, they
// stay whole words, which wait for the load only where they are widened.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount < 16 ? sizeof(T) * kCount : 16) Packed {
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

template <typename T>
struct Packed<T, 1> {
  T value;
  __device__ float operator[](int) const { return to_float(value); }
  __device__ void set(int, T v) { value = v; }
};

template <int kCount, typename T>
__device__ Packed<T, kCount> load_packed(const T* p) {
  return *reinterpret_cast<const Packed<T, kCount>*>(p);
}

// Asks for the line at p in the second-level cache.
__device__ inline void prefetch_line(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Elements of T in 16 bytes.
template <typename T>
constexpr int kVecOf16Bytes = 16 / static_cast<int>(sizeof(T));

template <int kCount, typename T>
__device__ void load_floats(const T* p, float (&to)[kCount]) {
  const auto packed = load_packed<kCount>(p);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = packed[i];
}

template <int kCount, typename T>
__device__ void store_floats(T* p, const float (&from)[kCount]) {
  Packed<T, kCount> packed = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) packed.set(i, from_float<T>(from[i]));
  *reinterpret_cast<Packed<T, kCount>*>(p) = packed;
}

inline bool is_aligned(const void* p, int64_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace m4j::cuda
