// One block a row: one pass for its largest element and the sum of exponentials, one for the results.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = 1024;

// Of some elements: the largest, and the sum of exp(x - largest).
struct Partial {
  float max, sum;
};

__device__ inline Partial merge(const Partial& a, const Partial& b) {
  const float max = fmaxf(a.max, b.max);
  if (max == -INFINITY) return {max, 0};
  return {max, a.sum * expf(a.max - max) + b.sum * expf(b.max - max)};
}

__device__ inline Partial warp_merge(Partial p) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    p = merge(p, {__shfl_xor_sync(0xffffffff, p.max, lanes), __shfl_xor_sync(0xffffffff, p.sum, lanes)});
  }
  return p;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) softmax_kernel(const __grid_constant__ SoftmaxArgs a) {
  constexpr int kAtOnce = 8;
  __shared__ Partial partials[kThreads / 32];
  const T* __restrict__ x = static_cast<const T*>(a.x) + static_cast<int64_t>(blockIdx.x) * a.ld_x;
  float* __restrict__ out = a.out + static_cast<int64_t>(blockIdx.x) * a.ld_out;
  Partial row = {-INFINITY, 0};
  for (int64_t begin = threadIdx.x; begin < a.n; begin += kAtOnce * kThreads) {
    float v[kAtOnce];
    Partial part = {-INFINITY, 0};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      v[i] = begin + i * kThreads < a.n ? to_float(x[begin + i * kThreads]) : -INFINITY;
      part.max = fmaxf(part.max, v[i]);
    }
    if (part.max == -INFINITY) continue;
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) part.sum += expf(v[i] - part.max);
    row = merge(row, part);
  }
  row = warp_merge(row);
  if (threadIdx.x % 32 == 0) partials[threadIdx.x / 32] = row;
  __syncthreads();
  row = warp_merge(partials[threadIdx.x % 32]);
  const float scale = 1.0f / row.sum, log_sum = logf(row.sum);
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < a.n; i += kThreads) {
    const float v = to_float(x[i]) - row.max;
    out[i] = a.log ? v - log_sum : expf(v) * scale;
  }
}

}  // namespace

void softmax(const SoftmaxArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename T>(T) {
    softmax_kernel<T><<<static_cast<unsigned>(a.tokens), kThreads, 0, stream>>>(a);
  });
  check_launch("softmax");
}

}  // namespace m4j::cuda
