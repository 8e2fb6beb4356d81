#include "ops/half.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/weights.h"

namespace m4j {
namespace {

void expect_value(float actual, double expected, int bits) {
  if (std::isnan(expected)) {
    ASSERT_TRUE(std::isnan(actual)) << "bits " << bits;
  } else {
    ASSERT_EQ(static_cast<double>(actual), expected) << "bits " << bits;
    ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << "bits " << bits;
  }
}

TEST(Half, EveryF16PatternIsExact) {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    expect_value(f16_to_f32(half), test::decode_half(DType::kF16, half), bits);
    expect_value(load_f32(&half, DType::kF16, 0), test::decode_half(DType::kF16, half), bits);
  }
}

TEST(Half, EveryBf16PatternIsExact) {
  for (int bits = 0; bits <= 0xffff; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    expect_value(bf16_to_f32(half), test::decode_half(DType::kBF16, half), bits);
    expect_value(load_f32(&half, DType::kBF16, 0), test::decode_half(DType::kBF16, half), bits);
  }
}

TEST(Half, F32IsReadAsItIs) {
  const float values[] = {1.5f, -0.0f, 0x1p-140f};
  for (int i = 0; i < 3; ++i) expect_value(load_f32(values, DType::kF32, i), values[i], i);
}

}  // namespace
}  // namespace m4j
