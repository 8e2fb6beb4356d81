#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 256;

// One block a segment.
template <typename T>
__global__ void gather_last_kernel(GatherLastArgs a) {
  const Segment segment = a.segments.items[blockIdx.x];
  const int64_t row = segment.row + segment.tokens - 1;
  const int64_t from = row * a.dim, to = static_cast<int64_t>(blockIdx.x) * a.dim;
  const float scale = a.x_scale ? a.x_scale[row] : 1;
  for (int64_t i = threadIdx.x; i < a.dim; i += blockDim.x) {
    a.out[to + i] = fmaf(scale, to_float(static_cast<const T*>(a.x)[from + i]), a.residual[from + i]);
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
