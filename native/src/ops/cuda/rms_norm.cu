// Norms of rows, bound by memory: one block a group of a row, which it keeps in registers between the sum of squares
// and the scaling.
#include <algorithm>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

constexpr int kMaxThreads = 1024;

// For all threads of the block, which are whole warps.
__device__ inline float block_sum(float v) {
  __shared__ float sums[kMaxThreads / 32];
  v = warp_sum(v);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f);
}

// A block's group of a row.
template <typename T>
struct Group {
  int64_t dim;
  const T *x, *gate;
  float* residual;
  const float *x_scale, *weight;
  T* out;

  __device__ explicit Group(const RmsNormArgs& a) : dim(a.n_groups == 1 ? a.dim : a.dim / a.n_groups) {
    const unsigned n_groups = static_cast<unsigned>(a.n_groups);
    const int64_t token = blockIdx.x / n_groups, offset = blockIdx.x % n_groups * dim;
    x = a.x ? static_cast<const T*>(a.x) + token * a.ld_x + offset : nullptr;
    gate = a.gate ? static_cast<const T*>(a.gate) + token * a.ld_gate + offset : nullptr;
    residual = a.residual ? a.residual + token * a.dim + offset : nullptr;
    x_scale = a.x_scale ? a.x_scale + token : nullptr;
    weight = a.weight ? a.weight + offset : nullptr;
    out = static_cast<T*>(a.out) + token * a.ld_out + offset;
  }

  // What is normalised, elements [i, i + kCount): the residual stream with x, which is written back, or the gated x.
  template <int kCount>
  __device__ void load(int64_t i, float (&v)[kCount]) const {
    Packed<T, kCount> x_part = {}, gate_part = {};
    Packed<float, kCount> stream = {};
    if (x) x_part = load_packed<kCount>(x + i);
    if (gate) gate_part = load_packed<kCount>(gate + i);
    if (residual) stream = load_packed<kCount>(residual + i);
    const float scale = x_scale ? *x_scale : 1.0f;
#pragma unroll
    for (int k = 0; k < kCount; ++k) v[k] = fmaf(scale, x_part[k], stream[k]);
    if (residual && x) store_floats(residual + i, v);
    if (gate) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) v[k] *= silu<T>(gate_part[k]);
    }
  }

  // Into the second-level cache: registers for it would halve the blocks of a multiprocessor.
  __device__ void fetch_weights(int64_t i) const {
    if (weight) prefetch_line(weight + i);
  }
  template <int kCount>
  __device__ void store(int64_t i, float (&v)[kCount], float scale) const {
    float w[kCount];
    if (weight) load_floats(weight + i, w);
#pragma unroll
    for (int k = 0; k < kCount; ++k) v[k] *= weight ? scale * w[k] : scale;
    store_floats(out + i, v);
  }
};

// Up to kParts vectors of 8 elements a thread.
template <typename T, int kParts>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_kernel(const __grid_constant__ RmsNormArgs a) {
  const Group<T> group(a);
  float v[kParts][8], sum = 0;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int64_t i = 8 * (static_cast<int64_t>(part) * blockDim.x + threadIdx.x);
    if (i < group.dim) group.fetch_weights(i);
  }
  let_next_start();
  wait_for_previous();
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int64_t i = 8 * (static_cast<int64_t>(part) * blockDim.x + threadIdx.x);
    if (i < group.dim) {
      group.load(i, v[part]);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k) v[part][k] = 0;
    }
  }
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
#pragma unroll
    for (int k = 0; k < 8; ++k) sum = fmaf(v[part][k], v[part][k], sum);
  }
  const float scale = rsqrtf(block_sum(sum) / static_cast<float>(group.dim) + a.eps);
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int64_t i = 8 * (static_cast<int64_t>(part) * blockDim.x + threadIdx.x);
    if (i < group.dim) group.store(i, v[part], scale);
  }
}

// Any size: reads the row twice, element by element.
template <typename T>
__global__ void __launch_bounds__(kMaxThreads) rms_norm_any_kernel(const __grid_constant__ RmsNormArgs a) {
  Group<T> group(a);
  let_next_start();
  wait_for_previous();
  float sum = 0;
  for (int64_t i = threadIdx.x; i < group.dim; i += blockDim.x) {
    float v[1];
    group.load(i, v);
    sum = fmaf(v[0], v[0], sum);
  }
  const float scale = rsqrtf(block_sum(sum) / static_cast<float>(group.dim) + a.eps);
  if (group.residual) group.x = nullptr;  // is part of the residual stream by now
  for (int64_t i = threadIdx.x; i < group.dim; i += blockDim.x) {
    float v[1];
    group.load(i, v);
    group.store(i, v, scale);
  }
}

constexpr int kScaleWarps = 8;

// A warp for each token.
__global__ void __launch_bounds__(kScaleWarps * kWarp) rms_scale_kernel(const __grid_constant__ RmsScaleArgs a) {
  const int64_t token = int64_t{blockIdx.x} * kScaleWarps + threadIdx.x / kWarp;
  let_next_start();
  wait_for_previous();
  if (token >= a.tokens) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < a.parts; i += kWarp) sum += a.squares[token * a.parts + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) a.out[token] = rsqrtf(sum / static_cast<float>(a.dim) + a.eps);
}

// Rows that can be read in vectors of 8.
bool has_vectors(const RmsNormArgs& a, int64_t per_16_bytes) {
  const auto rows = [&](const void* p, int64_t ld) {
    return p == nullptr || (is_aligned(p, 16) && ld % per_16_bytes == 0);
  };
  return a.dim / a.n_groups % 8 == 0 && rows(a.x, a.ld_x) && rows(a.gate, a.ld_gate) && rows(a.out, a.ld_out) &&
         is_aligned(a.residual, 16) && is_aligned(a.weight, 16);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, cudaStream_t stream) {
  const int64_t blocks = a.tokens * a.n_groups;
  const int64_t vectors = ceil_div(a.dim / a.n_groups, 8);
  with_element_type(a.dtype, [&]<typename T>(T) {
    const auto launch = [&](void (*kernel)(RmsNormArgs), int64_t wanted) {
      const int64_t threads = std::min<int64_t>(ceil_div(wanted, 32) * 32, kMaxThreads);
      launch_kernel("rms_norm", kernel, {.blocks = blocks, .threads = static_cast<unsigned>(threads)}, stream, a);
    };
    if (!has_vectors(a, kVecOf16Bytes<T>) || vectors > 4 * kMaxThreads) {
      launch(rms_norm_any_kernel<T>, 8 * vectors);
    } else if (vectors <= kMaxThreads) {
      launch(rms_norm_kernel<T, 1>, vectors);
    } else {
      launch(rms_norm_kernel<T, 4>, ceil_div(vectors, 4));
    }
  });
}

void rms_scale(const RmsScaleArgs& a, cudaStream_t stream) {
  launch_kernel("rms_scale", rms_scale_kernel,
                {.blocks = ceil_div(a.tokens, kScaleWarps), .threads = kScaleWarps * kWarp},
                stream, a);
}

}  // namespace m4j::cuda
