// Elementary functions of the kernels, at float32 rounding level; results below the smallest normal number are zero.
#pragma once

#include <cuda_bf16.h>

#include <type_traits>

namespace m4j::cuda {

constexpr float kLog2e = 1.4426950408889634f;

// 2^x in one instruction of the special-function unit, within 2 units in the last place.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float reciprocal_fast(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// max(x, 0) + log1p(e) with e = exp(-|x|). The minimax polynomial of log1p(e) / e on [0, 1] (relative error 3e-8)
// keeps the relative precision of tiny results and costs the special-function unit nothing.
__device__ inline float softplus(float x) {
  const float e = exp2_fast(-kLog2e * fabsf(x));
  float p = 0.0052326937f;
  p = fmaf(p, e, -0.0295052401f);
  p = fmaf(p, e, 0.0782259609f);
  p = fmaf(p, e, -0.136632473f);
  p = fmaf(p, e, 0.191060079f);
  p = fmaf(p, e, -0.248429827f);
  p = fmaf(p, e, 0.333190969f);
  p = fmaf(p, e, -0.499994931f);
  p = fmaf(p, e, 0.99999997f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

// For x of T: where that has 16 bits, by a shorter polynomial (relative error 1.3e-6).
template <typename T>
__device__ float softplus(float x) {
  if constexpr (sizeof(T) == 4) return softplus(x);
  const float e = exp2_fast(-kLog2e * fabsf(x));
  float p = 0.0141410241f;
  p = fmaf(p, e, -0.066401802f);
  p = fmaf(p, e, 0.149223879f);
  p = fmaf(p, e, -0.235038608f);
  p = fmaf(p, e, 0.331094503f);
  p = fmaf(p, e, -0.499869645f);
  p = fmaf(p, e, 0.999998748f);
  return fmaf(p, e, fmaxf(x, 0.0f));
}

__device__ inline float silu(float x) { return x * reciprocal_fast(1.0f + exp2_fast(-kLog2e * x)); }

// silu(2 h) with an absolute error of up to 2^-11 |h|, which bfloat16 hides but where h is far below zero.
__device__ __forceinline__ float silu_of_half(float h) {
  float t;
  asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(h));
  return fmaf(h, t, h);
}

// For results of T.
template <typename T>
__device__ float silu(float x) {
  if constexpr (std::is_same_v<T, __nv_bfloat16>) return silu_of_half(0.5f * x);
  return silu(x);
}

}  // namespace m4j::cuda
