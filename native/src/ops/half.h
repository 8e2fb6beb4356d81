// Exact conversions of stored 16-bit weights to float32, one at a time.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

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

// Rounded to nearest, ties to even; too large becomes infinite.
inline uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, rounded by an addition that aligns it
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

// Rounded to nearest, ties to even.
inline uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// The scale d of a block, which lies at any address.
inline float block_scale(const uint8_t* block) {
  uint16_t bits;
  std::memcpy(&bits, block, sizeof bits);
  return f16_to_f32(bits);
}

// Element i of an array of any dtype.
inline float load_f32(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::kQ8_0: {
      const uint8_t* block = static_cast<const uint8_t*>(data) + i / kQuantBlock * 34;
      return block_scale(block) * static_cast<float>(static_cast<int8_t>(block[2 + i % kQuantBlock]));
    }
    case DType::kQ4_0: {
      const uint8_t* block = static_cast<const uint8_t*>(data) + i / kQuantBlock * 18;
      const int64_t k = i % kQuantBlock;
      const int code = k < 16 ? block[2 + k] & 15 : block[2 + k - 16] >> 4;
      return block_scale(block) * static_cast<float>(code - 8);
    }
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
