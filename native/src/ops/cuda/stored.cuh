// Weights as a checkpoint stores them, one element at a time.
#pragma once

#include "ops/cuda/launch.cuh"

namespace m4j::cuda {

__device__ inline float block_scale(const uint8_t* block) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(block[0] | block[1] << 8)));
}

__device__ inline int block_code(const uint8_t* block, int k, bool wide) {
  if (wide) return static_cast<int8_t>(block[2 + k]);
  return (k < 16 ? block[2 + k] & 15 : block[2 + k - 16] >> 4) - 8;
}

// Element i of an array in a checkpoint's layout; blocks of quantised types lie at any address.
template <DType kFrom>
__device__ float load_stored(const void* p, int64_t i) {
  if constexpr (kFrom == DType::kF32) {
    return static_cast<const float*>(p)[i];
  } else if constexpr (kFrom == DType::kF16) {
    return to_float(static_cast<const __half*>(p)[i]);
  } else if constexpr (kFrom == DType::kBF16) {
    return to_float(static_cast<const __nv_bfloat16*>(p)[i]);
  } else {
    constexpr bool kWide = kFrom == DType::kQ8_0;
    const uint8_t* block = static_cast<const uint8_t*>(p) + i / kQuantBlock * (kWide ? 34 : 18);
    return block_scale(block) * static_cast<float>(block_code(block, static_cast<int>(i % kQuantBlock), kWide));
  }
}

// body.template operator()<kDType>() with any dtype of weights.
template <typename Body>
void with_stored_type(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kF32: return body.template operator()<DType::kF32>();
    case DType::kF16: return body.template operator()<DType::kF16>();
    case DType::kBF16: return body.template operator()<DType::kBF16>();
    case DType::kQ8_0: return body.template operator()<DType::kQ8_0>();
    case DType::kQ4_0: return body.template operator()<DType::kQ4_0>();
  }
}

}  // namespace m4j::cuda
