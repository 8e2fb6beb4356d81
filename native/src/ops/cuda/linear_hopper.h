// out = x weight^T + bias for the batches of a decode step on Hopper: weights stream from memory once, and the first of
// them before the kernel that computes x has ended.
#pragma once

#include "ops/cuda/linear.h"

namespace m4j::cuda {

// false if the device, the build or the shape is none for it: nothing has been done then. `weight` holds the matrix in
// the dtype of x; if it is `constant`, it may be read before the work already on the stream has been done.
bool linear_hopper(const LinearArgs& a, const void* weight, bool constant, cudaStream_t stream);

}  // namespace m4j::cuda
