#include "support/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <utility>

namespace m4j::test {
namespace {

class PrintSeed : public ::testing::Environment {
 public:
  void SetUp() override { std::printf("M4J_TEST_SEED=%llu\n", static_cast<unsigned long long>(run_seed())); }
};

const ::testing::Environment* const kPrintSeed = ::testing::AddGlobalTestEnvironment(new PrintSeed);

}  // namespace

uint64_t run_seed() {
  static const uint64_t seed = [] {
    const char* text = std::getenv("M4J_TEST_SEED");
    return text ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  }();
  return seed;
}

std::vector<float> Random::normal(int64_t size, float scale, bool present) {
  std::vector<float> v(present ? static_cast<size_t>(size) : 0);
  std::normal_distribution<float> distribution(0, scale);
  for (float& x : v) x = distribution(engine_);
  return v;
}

std::vector<float> Random::uniform(int64_t size, float low, float high, bool present) {
  std::vector<float> v(present ? static_cast<size_t>(size) : 0);
  std::uniform_real_distribution<float> distribution(low, high);
  for (float& x : v) x = distribution(engine_);
  return v;
}

std::vector<int32_t> Random::ids(int64_t size, int32_t vocab_size) {
  std::vector<int32_t> v(static_cast<size_t>(size));
  std::uniform_int_distribution<int32_t> distribution(0, vocab_size - 1);
  for (int32_t& x : v) x = distribution(engine_);
  return v;
}

bool Random::left_out() {
  static const int one_in = [] {
    const char* text = std::getenv("M4J_TEST_ONE_IN");
    return text ? std::max(1, std::atoi(text)) : 1;
  }();
  return !std::exchange(first_, false) && one_in > 1 && std::uniform_int_distribution<int>(1, one_in)(engine_) > 1;
}

std::vector<size_t> Random::some_of(size_t count, size_t least) {
  std::vector<size_t> some;
  for (size_t i = 0; i < count; ++i) {
    if (some.size() < least || !left_out()) some.push_back(i);
  }
  return some;
}

std::vector<uint16_t> Random::halves(int64_t size, DType dtype) {
  const int mantissa_bits = dtype == DType::kF16 ? 10 : 7;
  const int top_exponent = dtype == DType::kF16 ? 15 + 1 : 127 + 1;
  std::uniform_int_distribution<int> sign(0, 1), mantissa(0, (1 << mantissa_bits) - 1), below_top(0, 9);
  std::vector<uint16_t> v(static_cast<size_t>(size));
  for (uint16_t& x : v) {
    const int below = below_top(engine_);
    const int exponent = below == 9 ? 0 : top_exponent - below;  // 0: a subnormal
    x = static_cast<uint16_t>(sign(engine_) << 15 | exponent << mantissa_bits | mantissa(engine_));
  }
  return v;
}

}  // namespace m4j::test
