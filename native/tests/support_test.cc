// The test support itself: what it promises to catch, it catches.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>

#include "support/guarded.h"
#include "support/op_test.h"
#include "support/safetensors.h"

namespace m4j::test {
namespace {

const std::vector<float> kValues = {1, 2, 3, 4, 5, 6};

class GuardedDeathTest : public ::testing::Test {
 protected:
  GuardedDeathTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

void read(const volatile float* p) { static_cast<void>(*p); }
void write(volatile float* p) { *p = 7; }

TEST_F(GuardedDeathTest, PagesAroundTheMatrixAreForbidden) {
  const auto at_end = Guarded<float>::inout(kValues, 3, {Placement::kEndsAtGuard, 2});
  EXPECT_DEATH(read(at_end.data() + 8), "");
  EXPECT_DEATH(write(at_end.data() + 8), "");
  const auto at_begin = Guarded<float>::inout(kValues, 3, {Placement::kBeginsAtGuard, 2});
  EXPECT_DEATH(read(at_begin.data() - 1), "");
}

TEST_F(GuardedDeathTest, InputsAreReadOnly) {
  const auto input = Guarded<float>::input(kValues, 3, {Placement::kMisaligned, 0});
  EXPECT_DEATH(write(input.data()), "");
}

TEST(Guarded, WritesBetweenAndBesideRowsAreReported) {
  for (int64_t offset : {-1, 3, 4, 8}) {  // rows of 3 with a gap of 2
    std::optional<Guarded<float>> matrix = Guarded<float>::inout(kValues, 3, {Placement::kMisaligned, 2});
    write(matrix->data() + offset);
    EXPECT_NONFATAL_FAILURE(matrix.reset(), "written outside the rows");
  }
}

TEST(Guarded, HoldsItsValuesInEveryLayout) {
  for (const Layout& layout : kLayouts) {
    const auto matrix = Guarded<float>::inout(kValues, 3, layout);
    EXPECT_EQ(matrix.values(), kValues);
    EXPECT_EQ(matrix.data()[matrix.ld()], 4);
    for (float v : Guarded<float>::output(2, 3, layout).values()) EXPECT_TRUE(std::isnan(v));
  }
  EXPECT_EQ(Guarded<float>::input({}, 3, kLayouts[0]).data(), nullptr);
}

TEST(Expectations, RejectWrongNumbers) {
  EXPECT_NONFATAL_FAILURE(expect_close({1, 2, 3.001f}, std::vector<float>{1, 2, 3}, 1e-5), "relative norm error");
  EXPECT_FATAL_FAILURE(expect_close({1, NAN}, std::vector<float>{1, 2}, 1e30), "is nan");
  EXPECT_FATAL_FAILURE(expect_close({1, INFINITY}, std::vector<float>{1, 2}, 1e30), "is inf");
  EXPECT_FATAL_FAILURE(expect_same_bits(std::vector<float>{0.0f}, std::vector<float>{-0.0f}), "element 0 of 1");
  EXPECT_FATAL_FAILURE(expect_same_bits(std::vector<float>{1}, std::vector<float>{1, 2}), "");
}

TEST(ReadGolden, KnowsShapesAndRefusesWhatIsMissing) {
  const auto golden = read_golden("op-ssd-small.safetensors");
  EXPECT_EQ(golden.at("x").shape, (std::vector<int64_t>{2, 19, 4, 16}));
  EXPECT_EQ(golden.at("x").values.size(), 2u * 19 * 4 * 16);
  EXPECT_THROW(read_golden("absent.safetensors"), std::runtime_error);
}

}  // namespace
}  // namespace m4j::test
