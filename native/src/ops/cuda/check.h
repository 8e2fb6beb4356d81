// From CUDA's return codes to Failure.
#pragma once

#include <cuda_runtime.h>

#include "runtime/failure.h"

namespace m4j::cuda {

// Throws what a CUDA call reported; `what` names the call.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not to be reported once more by the next call
  if (error == cudaErrorMemoryAllocation) {
    fail(M4J_ERR_OUT_OF_MEMORY, "%s: out of GPU memory (%s)", what, cudaGetErrorString(error));
  }
  fail(M4J_ERR_INTERNAL, "%s: %s (%s)", what, cudaGetErrorString(error), cudaGetErrorName(error));
}

}  // namespace m4j::cuda
