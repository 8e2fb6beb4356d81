#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/stored.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

// One block a token.
template <DType kFrom>
__global__ void embedding_kernel(const EmbeddingArgs a) {
  const int64_t token = blockIdx.x, row = a.ids[token] * a.ld_table;
  float* out = a.out + token * a.ld_out;
  for (int64_t i = threadIdx.x; i < a.d_model; i += blockDim.x) out[i] = load_stored<kFrom>(a.table, row + i);
}

}  // namespace

void embedding(const EmbeddingArgs& a, cudaStream_t stream) {
  with_stored_type(a.table_dtype, [&]<DType kFrom>() {
    embedding_kernel<kFrom><<<static_cast<unsigned>(a.tokens), kThreads, 0, stream>>>(a);
  });
  check_launch("embedding");
}

}  // namespace m4j::cuda
