#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

// One block a segment.
template <typename T>
__global__ void gather_last_kernel(GatherLastArgs a) {
  const Segment segment = a.segments.items[blockIdx.x];
  const int64_t from = (segment.row + segment.tokens - 1) * a.dim, to = static_cast<int64_t>(blockIdx.x) * a.dim;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    a.residual_out[to + i] = a.residual[from + i];
    static_cast<T*>(a.x_out)[to + i] = static_cast<const T*>(a.x)[from + i];
  }
}

}  // namespace

void gather_last(const GatherLastArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename T>(T) {
    gather_last_kernel<T><<<static_cast<unsigned>(a.segments.count), kThreads, 0, stream>>>(a);
  });
  check_launch("gather_last");
}

}  // namespace m4j::cuda
