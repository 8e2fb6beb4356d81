// What launchers and kernels share: checked launches, element types, their conversion to and from float32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "ops/cuda/check.h"
#include "ops/ops.h"

namespace m4j::cuda {

// After a kernel launch.
inline void check_launch(const char* kernel) { check(cudaGetLastError(), kernel); }

// body(T()) with the element type of `dtype`: float, __half or __nv_bfloat16.
template <typename Body>
void with_element_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32: return body(float());
    case DType::kF16: return body(__half());
    case DType::kBF16: return body(__nv_bfloat16());
    default: fail(M4J_ERR_UNSUPPORTED, "activations of dtype %d on the GPU, expected F32, F16 or BF16", static_cast<int>(dtype));
  }
}

// The same for one of 16 bits.
template <typename Body>
void with_half_type(DType dtype, Body&& body) {
  dtype == DType::kBF16 ? body(__nv_bfloat16()) : body(__half());
}

__device__ inline float to_float(float v) { return v; }
__device__ inline float to_float(__half v) { return __half2float(v); }
__device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__device__ T from_float(float v);
template <>
__device__ inline float from_float<float>(float v) { return v; }
template <>
__device__ inline __half from_float<__half>(float v) { return __float2half_rn(v); }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float v) { return __float2bfloat16_rn(v); }

constexpr int kWarp = 32;

// Of the warp's lanes, for each of them.
__device__ inline float warp_sum(float v) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

// Of the lanes up to this one, which is one of the first kCount.
template <int kCount = kWarp, typename T>
__device__ T warp_running_sum(T v, int lane) {
#pragma unroll
  for (int lanes = 1; lanes < kCount; lanes *= 2) {
    const T before = __shfl_up_sync(~0u, v, lanes);
    if (lane >= lanes) v += before;
  }
  return v;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace m4j::cuda
