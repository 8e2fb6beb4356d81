#include <algorithm>

#include "ops/cuda/launch.cuh"
#include "ops/cuda/linear.h"
#include "ops/cuda/linear_hopper.h"

namespace m4j::cuda {
namespace {

constexpr int kWarps = 8;     // of a block
constexpr int kRows = 2;      // outputs of a warp
constexpr int kMaxTokens = 4;  // beyond, the tensor cores of cuBLASLt win

// 16 bytes of weights, and the same number of activations.
template <typename W>
struct Packet {
  static constexpr int kSize = 16 / sizeof(W);
  W v[kSize];
};

template <typename W>
__device__ Packet<W> load_weights(const W* p) {  // read once: keep them out of the way of what is read again
  Packet<W> packet;
  *reinterpret_cast<uint4*>(&packet) = __ldcs(reinterpret_cast<const uint4*>(p));
  return packet;
}

template <typename T, int kCount>
__device__ void load_activations(const T* p, float (&x)[kCount]) {
  constexpr int kEach = 16 / sizeof(T);
  static_assert(kCount % kEach == 0);
#pragma unroll
  for (int i = 0; i < kCount; i += kEach) {
    Packet<T> packet;
    *reinterpret_cast<uint4*>(&packet) = *reinterpret_cast<const uint4*>(p + i);
#pragma unroll
    for (int j = 0; j < kEach; ++j) x[i + j] = to_float(packet.v[j]);
  }
}

__device__ float widen(float v, float) { return v; }
__device__ float widen(__half v, float) { return to_float(v); }
__device__ float widen(__nv_bfloat16 v, float) { return to_float(v); }
__device__ float widen(int8_t v, float scale) { return static_cast<float>(v) * scale; }

struct MatVec {
  const void* x;
  int64_t ld_x;
  const void* weight;
  const __half* scales;
  const float* bias;
  int64_t in, out_dim;
  void* out;
  int64_t ld_out;
};

// A warp computes kRows outputs of all tokens; lanes walk along `in` in packets of 16 bytes.
template <typename T, typename W, typename Out, int kTokens>
__global__ void __launch_bounds__(kWarps* kWarp) mat_vec_kernel(MatVec a) {
  constexpr int kSize = Packet<W>::kSize;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp) * kRows;
  if (first >= a.out_dim) return;
  const T* x = static_cast<const T*>(a.x);
  const W* w[kRows];
  const __half* scales[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = min(first + r, a.out_dim - 1);
    w[r] = static_cast<const W*>(a.weight) + row * a.in;
    scales[r] = a.scales + row * (a.in / kQuantBlock);
  }
  float sum[kRows][kTokens] = {};
#pragma unroll 4
  for (int64_t k = static_cast<int64_t>(lane) * kSize; k < a.in; k += kWarp * kSize) {
    Packet<W> packet[kRows];
    float scale[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      packet[r] = load_weights(w[r] + k);
      scale[r] = sizeof(W) == 1 ? __half2float(scales[r][k / kQuantBlock]) : 1.0f;
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      float xv[kSize];
      load_activations(x + t * a.ld_x + k, xv);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float part = 0;  // of one block where the weights have a scale
#pragma unroll
        for (int i = 0; i < kSize; ++i) part = fmaf(widen(packet[r].v[i], 1.0f), xv[i], part);
        sum[r][t] = fmaf(part, scale[r], sum[r][t]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float total = warp_sum(sum[r][t]);
      if (lane == 0 && first + r < a.out_dim) {
        const float bias = a.bias == nullptr ? 0.0f : a.bias[first + r];
        static_cast<Out*>(a.out)[t * a.ld_out + first + r] = from_float<Out>(total + bias);
      }
    }
  }
}

// out[t, o] += bias[o]; one block a token.
template <typename Out>
__global__ void bias_kernel(const float* __restrict__ bias, int64_t out_dim, Out* __restrict__ out, int64_t ld_out) {
  Out* row = out + blockIdx.x * ld_out;
  for (int64_t i = threadIdx.x; i < out_dim; i += blockDim.x) row[i] = from_float<Out>(to_float(row[i]) + bias[i]);
}

// Codes and scales to a 16-bit type, four weights a thread.
template <typename T>
__global__ void dequantise_kernel(const int8_t* __restrict__ codes, const __half* __restrict__ scales, int64_t count,
                                  T* __restrict__ out) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
  if (i >= count) return;
  const char4 c = *reinterpret_cast<const char4*>(codes + i);
  const float scale = __half2float(scales[i / kQuantBlock]);
  out[i] = from_float<T>(c.x * scale);
  out[i + 1] = from_float<T>(c.y * scale);
  out[i + 2] = from_float<T>(c.z * scale);
  out[i + 3] = from_float<T>(c.w * scale);
}

template <typename T, typename W, typename Out>
void launch_mat_vec(const MatVec& a, int64_t tokens, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(ceil_div(a.out_dim, kWarps * kRows));
  constexpr int kThreads = kWarps * kWarp;
  switch (tokens) {
    case 1: mat_vec_kernel<T, W, Out, 1><<<grid, kThreads, 0, stream>>>(a); break;
    case 2: mat_vec_kernel<T, W, Out, 2><<<grid, kThreads, 0, stream>>>(a); break;
    case 3: mat_vec_kernel<T, W, Out, 3><<<grid, kThreads, 0, stream>>>(a); break;
    default: mat_vec_kernel<T, W, Out, kMaxTokens><<<grid, kThreads, 0, stream>>>(a); break;
  }
  check_launch("linear (mat_vec_kernel)");
}

template <typename T>
void mat_vec(const LinearArgs& a, cudaStream_t stream) {
  const MatVec m{a.x, a.ld_x, a.weight.data, static_cast<const __half*>(a.weight.scales), a.bias, a.weight.columns,
                 a.weight.rows, a.out, a.ld_out};
  const bool quantised = a.weight.dtype == DType::kQ8_0, wide = a.out_dtype == DType::kF32;
  if constexpr (sizeof(T) == 4) {
    launch_mat_vec<float, float, float>(m, a.tokens, stream);
  } else if (quantised) {
    wide ? launch_mat_vec<T, int8_t, float>(m, a.tokens, stream) : launch_mat_vec<T, int8_t, T>(m, a.tokens, stream);
  } else {
    wide ? launch_mat_vec<T, T, float>(m, a.tokens, stream) : launch_mat_vec<T, T, T>(m, a.tokens, stream);
  }
}

int64_t aligned(int64_t bytes) { return ceil_div(bytes, 256) * 256; }

}  // namespace

int64_t linear_workspace(const DeviceMatrix& weight, DType dtype, int64_t tokens) {
  if (tokens <= kMaxTokens) return 0;
  const int64_t widened = weight.dtype == DType::kQ8_0 ? dtype_bytes(dtype, weight.rows * weight.columns) : 0;
  return Gemm::kWorkspaceBytes + aligned(widened);
}

void linear(const LinearArgs& a, Gemm& gemm, cudaStream_t stream) {
  if (a.tokens <= kMaxTokens) {
    const bool stored = a.weight.dtype != DType::kQ8_0;
    if (a.tokens > 1 && stored && linear_hopper(a, a.weight.data, a.constant_weight, stream)) return;
    with_element_type(a.dtype, [&]<typename T>(T) { mat_vec<T>(a, stream); });
    return;
  }
  const void* weight = a.weight.data;
  if (a.weight.dtype == DType::kQ8_0) {
    void* widened = static_cast<char*>(a.workspace.data) + Gemm::kWorkspaceBytes;
    const int64_t count = a.weight.rows * a.weight.columns;
    with_element_type(a.dtype, [&]<typename T>(T) {
      dequantise_kernel<<<static_cast<unsigned>(ceil_div(count, 4 * 256)), 256, 0, stream>>>(
          static_cast<const int8_t*>(a.weight.data), static_cast<const __half*>(a.weight.scales), count,
          static_cast<T*>(widened));
    });
    check_launch("linear (dequantise_kernel)");
    weight = widened;
  }
  if (linear_hopper(a, weight, a.constant_weight && a.weight.dtype != DType::kQ8_0, stream)) return;
  gemm.run({.dtype = a.dtype,
            .x = a.x,
            .ld_x = a.ld_x,
            .weight = weight,
            .tokens = a.tokens,
            .in = a.weight.columns,
            .out_dim = a.weight.rows,
            .out_dtype = a.out_dtype,
            .out = a.out,
            .ld_out = a.ld_out,
            .workspace = a.workspace.data},
           stream);
  if (a.bias == nullptr) return;
  with_element_type(a.out_dtype, [&]<typename Out>(Out) {
    bias_kernel<<<static_cast<unsigned>(a.tokens), 256, 0, stream>>>(a.bias, a.weight.rows, static_cast<Out*>(a.out),
                                                                    a.ld_out);
  });
  check_launch("linear (bias_kernel)");
}

}  // namespace m4j::cuda
