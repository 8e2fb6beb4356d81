#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

// One block a token.
template <typename T>
__global__ void embedding_kernel(const T* __restrict__ table, const int32_t* __restrict__ ids, int64_t d_model,
                                 float* __restrict__ out) {
  const int64_t token = blockIdx.x;
  const T* row = table + ids[token] * d_model;
  for (int64_t i = threadIdx.x; i < d_model; i += blockDim.x) out[token * d_model + i] = to_float(row[i]);
}

}  // namespace

void embedding(const EmbeddingArgs& a, cudaStream_t stream) {
  with_element_type(a.table_dtype, [&]<typename T>(T) {
    embedding_kernel<<<static_cast<unsigned>(a.tokens), kThreads, 0, stream>>>(static_cast<const T*>(a.table), a.ids,
                                                                             a.d_model, a.out);
  });
  check_launch("embedding");
}

}  // namespace m4j::cuda
