// Copies between arrays of any strides and float types: how tensors of callers become the rows that kernels take.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/ops.h"

namespace m4j::cuda {

constexpr int kCopyRank = 4;

// A view on GPU memory; fewer dimensions have leading ones.
struct Array {
  DType dtype = DType::kF32;  // F32, F16, BF16
  void* data = nullptr;
  int64_t shape[kCopyRank] = {1, 1, 1, 1};
  int64_t strides[kCopyRank] = {};  // elements
};

// out = x; of one shape, all dimensions at least 1. Rounded to nearest, ties to even.
void copy(const Array& x, const Array& out, cudaStream_t stream);

}  // namespace m4j::cuda
