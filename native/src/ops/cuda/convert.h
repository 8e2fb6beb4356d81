// Weights of a checkpoint, as they lie in memory, to the matrices that the kernels read.
#pragma once

#include "ops/cuda/linear.h"

namespace m4j::cuda {

struct ConvertArgs {
  DType from;
  const void* source;  // [rows, columns] in the checkpoint's layout, in GPU memory
  int64_t rows, columns;
  DType to;            // F32, F16, BF16; or Q8_0 for either quantised type
  void* out;           // [rows, ld_out]: only the columns are written
  int64_t ld_out;      // for Q8_0: columns
  void* scales;        // for Q8_0
};
void convert(const ConvertArgs&, cudaStream_t stream);

}  // namespace m4j::cuda
