// Fresh random inputs for every run. The seed is printed at the start and with each failure; M4J_TEST_SEED repeats it.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "ops/ops.h"

namespace m4j::test {

uint64_t run_seed();

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  // `size` numbers, or none if the optional input is absent.
  std::vector<float> normal(int64_t size, float scale = 1, bool present = true);
  std::vector<float> uniform(int64_t size, float low, float high, bool present = true);
  std::vector<int32_t> ids(int64_t size, int32_t vocab_size);
  // Bit patterns of finite numbers of a 16-bit dtype, subnormals among them, at most about 4 in magnitude.
  std::vector<uint16_t> halves(int64_t size, DType dtype);
  // Whether to leave out this one of many combinations: never, unless M4J_TEST_ONE_IN=n asks for the first and about one
  // in n of the others, for tools that slow programs down a thousandfold.
  bool left_out();
  // The numbers below count, in order, but for those left out; the first `least` are not.
  std::vector<size_t> some_of(size_t count, size_t least);

 private:
  std::mt19937_64 engine_;
  bool first_ = true;
};

}  // namespace m4j::test
