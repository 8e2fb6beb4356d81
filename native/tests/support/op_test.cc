#include "support/op_test.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace m4j::test {
namespace {

uint64_t seed_of_this_test() {
  const ::testing::TestInfo* info = ::testing::UnitTest::GetInstance()->current_test_info();
  return run_seed() ^ std::hash<std::string>{}(std::string(info->test_suite_name()) + info->name());
}

}  // namespace

double tolerance(int64_t terms) { return std::min(1e-5, 1e-6 * (1 + std::sqrt(static_cast<double>(terms)) / 8)); }

void expect_close(const std::vector<float>& actual, const Expected& expected, double tolerance) {
  ASSERT_EQ(actual.size(), expected.value.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_TRUE(std::isfinite(actual[i])) << "element " << i << " of " << actual.size() << " is " << actual[i];
  }
  // Below it lie the subnormal numbers, which count as zero while a team runs.
  constexpr double kSmallestNormal = std::numeric_limits<float>::min();
  double error = 0, norm = 0, worst = -1;
  size_t worst_at = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = std::max(0.0, std::fabs(actual[i] - expected.value[i]) - kSmallestNormal);
    const double size = std::max({std::fabs(expected.value[i]), expected.scale[i], kSmallestNormal});
    error += difference * difference;
    norm += size * size;
    if (difference > worst) {
      worst = difference;
      worst_at = i;
    }
  }
  EXPECT_LE(std::sqrt(error), tolerance * std::sqrt(norm))
      << "relative norm error " << std::sqrt(error / norm) << " over " << actual.size() << " elements; worst at "
      << worst_at << ": " << actual[worst_at] << ", expected " << expected.value[worst_at];
}

void expect_close(const std::vector<float>& actual, const std::vector<float>& expected, double tolerance) {
  Expected exact;
  for (float v : expected) exact.add(v, 0);
  expect_close(actual, exact, tolerance);
}

void expect_close(const Outputs& actual, const Outputs& expected, double tolerance) {
  expect_close(actual.out, expected.out, tolerance);
  expect_close(actual.state, expected.state, tolerance);
}

void expect_same_bits(const std::vector<float>& actual, const std::vector<float>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
        << "element " << i << " of " << actual.size() << ": " << actual[i] << ", expected " << expected[i];
  }
}

void expect_same_bits(const Outputs& actual, const Outputs& expected) {
  expect_same_bits(actual.out, expected.out);
  expect_same_bits(actual.state, expected.state);
}

double sum_of_squares_root(double a, double b) { return std::sqrt(a * a + b * b); }

OpTest::OpTest()
    : random(seed_of_this_test()), seed_trace_(__FILE__, __LINE__, "M4J_TEST_SEED=" + std::to_string(run_seed())) {}

Team& OpTest::team(int size) {
  static Team one(1), two(2), three(3), five(5);
  return size == 1 ? one : size == 2 ? two : size == 3 ? three : five;
}

std::vector<const Ops*> backends() {
  const OpsList list = available_ops();
  return {list.items, list.items + list.count};
}

std::string backend_name(const ::testing::TestParamInfo<const Ops*>& info) { return info.param->name; }

}  // namespace m4j::test
