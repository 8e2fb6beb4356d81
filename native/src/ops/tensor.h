// What the C ABI's tensors are, for those who know that they are valid.
#pragma once

#include <cstdint>

#include "mamba4j.h"
#include "ops/ops.h"

namespace m4j {

inline DType dtype_of(const m4j_tensor& t) { return static_cast<DType>(t.dtype); }

// INT64_MAX for more than that, as views that repeat an element may have.
inline int64_t element_count(const m4j_tensor& t) {
  int64_t count = 1;
  for (int i = 0; i < t.rank; ++i) {
    if (__builtin_mul_overflow(count, t.shape[i], &count)) return INT64_MAX;
  }
  return count;
}

}  // namespace m4j
