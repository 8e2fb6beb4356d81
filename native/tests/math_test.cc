// The vector functions of ops/cpu/math-inl.h over the whole range of float32, in every compiled target that this
// processor runs.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "ops/ops.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "math_test.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/math-inl.h"
#include "ops/cpu/vec-inl.h"

HWY_BEFORE_NAMESPACE();
namespace m4j {
namespace HWY_NAMESPACE {

// function: 0 Exp, 1 Exp2, 2 Silu, 3 Softplus. n is a multiple of 16.
void EvaluateMath(int function, const float* x, int64_t n, float* y) {
  namespace hn = hwy::HWY_NAMESPACE;
  const VecTag d;
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec v = hn::LoadU(d, x + i);
    switch (function) {
      case 0: hn::StoreU(Exp(d, v), d, y + i); break;
      case 1: hn::StoreU(Exp2(d, v), d, y + i); break;
      case 2: hn::StoreU(Silu(d, v), d, y + i); break;
      default: hn::StoreU(Softplus(d, v), d, y + i); break;
    }
  }
}

void WidenHalves(bool bf16, const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += kLanes)
    hwy::HWY_NAMESPACE::StoreU(bf16 ? widen_bf16(x + i) : widen_f16(x + i), VecTag(), y + i);
}

}  // namespace HWY_NAMESPACE
}  // namespace m4j
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "ops/half.h"

namespace m4j {
namespace {

struct Target {
  std::string name;
  void (*evaluate)(int function, const float* x, int64_t n, float* y);
  void (*widen)(bool bf16, const uint16_t* x, int64_t n, float* y);
};

void PrintTo(const Target& target, std::ostream* os) { *os << target.name; }

std::vector<Target> runnable_targets() {
  std::vector<Target> all;
#if HWY_ARCH_X86
  all.push_back({"avx3", N_AVX3::EvaluateMath, N_AVX3::WidenHalves});
  all.push_back({"avx2", N_AVX2::EvaluateMath, N_AVX2::WidenHalves});
  all.push_back({"sse4", N_SSE4::EvaluateMath, N_SSE4::WidenHalves});
#else
#if HWY_TARGETS & HWY_SVE_256
  all.push_back({"sve_256", N_SVE_256::EvaluateMath, N_SVE_256::WidenHalves});
#endif
  all.push_back({"neon", HWY_NAMESPACE::EvaluateMath, HWY_NAMESPACE::WidenHalves});
#endif
  std::erase_if(all, [](const Target& t) { return find_ops(t.name.c_str()) == nullptr; });
  return all;
}

class MathTest : public ::testing::TestWithParam<Target> {
 protected:
  std::vector<float> evaluate(int function, std::vector<float> x) const {
    const size_t n = x.size();
    x.resize((n + 15) / 16 * 16);
    std::vector<float> y(x.size());
    GetParam().evaluate(function, x.data(), static_cast<int64_t>(x.size()), y.data());
    y.resize(n);
    return y;
  }

  // Every 997th float, finite ones only, and the neighbours of those where behaviour changes.
  static std::vector<float> sweep() {
    std::vector<float> x;
    for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 997) {
      const float v = std::bit_cast<float>(static_cast<uint32_t>(bits));
      if (std::isfinite(v)) x.push_back(v);
    }
    constexpr float kInf = std::numeric_limits<float>::infinity();
    for (float b : {0.0f, 1.0f, 20.0f, 86.9f, 87.0f, 87.33654f, 87.4f, 88.0f, 88.72283f, 88.8f, 89.0f, 103.98f, 125.5f,
                    126.0f, 127.0f, 128.0f, 128.4f, 128.5f, 149.0f, std::numeric_limits<float>::min(),
                    std::numeric_limits<float>::max(), std::numeric_limits<float>::denorm_min()}) {
      for (float sign : {-1.0f, 1.0f}) {
        for (float v = sign * b, i = 0; i < 3; ++i, v = std::nextafter(v, kInf))
          if (std::isfinite(v)) x.push_back(v);
        for (float v = sign * b, i = 0; i < 3; ++i, v = std::nextafter(v, -kInf))
          if (std::isfinite(v)) x.push_back(v);
      }
    }
    return x;
  }

  // |y - exact| <= relative * |exact|, or less than `absolute`; beyond the range of float32: infinite.
  void expect_bounded(int function, const std::function<double(double)>& exact, double relative, double absolute) {
    const std::vector<float> x = sweep();
    const std::vector<float> y = evaluate(function, x);
    constexpr double kMax = std::numeric_limits<float>::max();
    int reported = 0;
    double worst = 0;
    for (size_t i = 0; i < x.size() && reported < 10; ++i) {
      const double e = exact(x[i]);
      const double error = std::abs(y[i] - e);
      bool good;
      if (std::abs(e) > kMax * (1 + relative)) {
        good = std::isinf(y[i]) && (y[i] > 0) == (e > 0);
      } else if (std::isinf(y[i])) {
        good = std::abs(e) > kMax * (1 - relative);
      } else {
        good = error <= relative * std::abs(e) || error <= absolute;
        if (error > absolute) worst = std::max(worst, error / std::abs(e));
      }
      if (good) continue;
      ++reported;
      ADD_FAILURE() << "x " << x[i] << ": got " << y[i] << ", expected " << e;
    }
    RecordProperty("worst_relative_error", std::to_string(worst * 1e9) + "e-9");
  }
};

INSTANTIATE_TEST_SUITE_P(Targets, MathTest, ::testing::ValuesIn(runnable_targets()),
                         [](const auto& info) { return info.param.name; });

constexpr double kFlushed = 0x1p-125;

TEST_P(MathTest, Exp) {
  expect_bounded(0, [](double x) { return std::exp(x); }, 2e-7, kFlushed);
}

TEST_P(MathTest, Exp2) {
  expect_bounded(1, [](double x) { return std::exp2(x); }, 2e-7, kFlushed);
}

TEST_P(MathTest, Silu) {
  expect_bounded(2, [](double x) { return x / (1 + std::exp(-x)); }, 4e-7, 6e-37);
}

TEST_P(MathTest, Softplus) {
  expect_bounded(3, [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }, 3e-7, kFlushed);
}

TEST_P(MathTest, InfinitiesAndNan) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (int function : {0, 1, 3}) {
    const std::vector<float> y = evaluate(function, {kInf, -kInf, nan});
    EXPECT_EQ(y[0], kInf);
    EXPECT_EQ(y[1], 0.0f);
    EXPECT_TRUE(std::isnan(y[2]));
  }
  const std::vector<float> y = evaluate(2, {kInf, nan});
  EXPECT_EQ(y[0], kInf);
  EXPECT_TRUE(std::isnan(y[1]));
}

TEST_P(MathTest, SameBitsInEveryLane) {
  for (int function = 0; function < 4; ++function) {
    for (float x : {-90.0f, -3.7f, -1e-3f, 0.25f, 11.3f}) {
      const std::vector<float> y = evaluate(function, std::vector<float>(16, x));
      for (float v : y) EXPECT_EQ(std::bit_cast<uint32_t>(v), std::bit_cast<uint32_t>(y[0]));
    }
  }
}

// All 65536 values of each type.
TEST_P(MathTest, WidenHalves) {
  std::vector<uint16_t> x(65536);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<uint16_t>(i);
  for (bool bf16 : {false, true}) {
    std::vector<float> y(x.size());
    GetParam().widen(bf16, x.data(), static_cast<int64_t>(x.size()), y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const float expected = bf16 ? bf16_to_f32(x[i]) : f16_to_f32(x[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(y[i])) << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(y[i]), std::bit_cast<uint32_t>(expected)) << i;
      }
    }
  }
}

}  // namespace
}  // namespace m4j
#endif  // HWY_ONCE
