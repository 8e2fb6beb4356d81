// 64-bit arithmetic on sizes from outside: what does not fit cannot be allocated.
#pragma once

#include <cstdint>
#include <new>

namespace m4j {

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_mul_overflow(a, b, &result)) throw std::bad_alloc();
  return result;
}

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t result;
  if (__builtin_add_overflow(a, b, &result)) throw std::bad_alloc();
  return result;
}

}  // namespace m4j
