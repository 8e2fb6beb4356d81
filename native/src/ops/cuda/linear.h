// out = x weight^T + bias: mat-vec kernels for a few tokens, cuBLASLt for more.
#pragma once

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/gemm.h"

namespace m4j::cuda {

// A weight matrix in GPU memory. Quantised ones are split into codes and scales, so that loads are aligned; int4 codes
// are widened to bytes, which changes no value.
struct DeviceMatrix {
  DType dtype = DType::kF32;  // F32, F16, BF16 or Q8_0
  const void* data = nullptr;      // [rows, columns]; Q8_0: int8 codes
  const void* scales = nullptr;    // Q8_0: float16 [rows, columns / 32]
  int64_t rows = 0, columns = 0;   // columns a multiple of 8, of 32 for Q8_0
};

struct LinearArgs {
  DType dtype;  // of x: that of the weight, any 16-bit type for Q8_0
  const void* x;  // [T, in]
  int64_t ld_x;
  DeviceMatrix weight;  // [out, in]
  const float* bias;    // optional [out]
  int64_t tokens;
  DType out_dtype;  // that of x, or F32
  void* out;        // [T, out]
  int64_t ld_out;
  Workspace workspace;  // at least linear_workspace
  bool constant_weight = true;  // nothing that is still on the stream writes it
};
void linear(const LinearArgs&, Gemm& gemm, cudaStream_t stream);
int64_t linear_workspace(const DeviceMatrix& weight, DType dtype, int64_t tokens);

}  // namespace m4j::cuda
