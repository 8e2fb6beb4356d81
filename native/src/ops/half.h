// Exact conversions of stored 16-bit weights to float32, one at a time.
#pragma once

#include <bit>
#include <cstdint>

#include "ops/ops.h"

namespace m4j {

inline float bf16_to_f32(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

inline float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t magnitude = bits & 0x7fff;
  if (magnitude < 0x0400) {  // zero and subnormals: magnitude * 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
  }
  const uint32_t rebias = magnitude >= 0x7c00 ? (255 - 31) << 23 : (127 - 15) << 23;  // infinities and NaNs stay such
  return std::bit_cast<float>(sign | ((magnitude << 13) + rebias));
}

// Element i of an array of any dtype.
inline float load_f32(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kF16:
      return f16_to_f32(static_cast<const uint16_t*>(data)[i]);
    case DType::kBF16:
      return bf16_to_f32(static_cast<const uint16_t*>(data)[i]);
    case DType::kF32:
      break;
  }
  return static_cast<const float*>(data)[i];
}

}  // namespace m4j
