#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "support/op_test.h"
#include "support/weights.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Linear);

// Numbers that are subnormal in float32, as bfloat16's subnormal ones are, count as zero while a team runs.
double flushed(double v) { return std::fabs(v) < std::numeric_limits<float>::min() ? 0 : v; }

struct Problem {
  int64_t tokens, in, out_dim;
  std::vector<float> x;     // [T, in]
  Weights weight;           // [out, in]
  std::vector<float> bias;  // optional [out]
  DType activation_type = DType::kF32;

  static Problem random(Random& random, int64_t tokens, int64_t in, int64_t out_dim, DType dtype, bool bias) {
    return {tokens, in, out_dim, random.normal(tokens * in), Weights::random(random, dtype, out_dim * in),
            random.normal(out_dim, 1, bias), DType::kF32};
  }

  Outputs run(const Runner& r) const {
    const auto x_memory = r.in(x, in);
    const GuardedWeights weight_memory(weight, in, r.layout);
    const auto bias_memory = r.flat_in(bias);
    const auto out = r.out(tokens, out_dim);
    r.execute(r.ops.linear,
              {x_memory.data(), x_memory.ld(), weight_memory.data(), weight.dtype, weight_memory.ld(),
               bias_memory.data(), tokens, in, out_dim, out.data(), out.ld(), activation_type},
              r.ops.linear_scratch(in, weight.dtype));
    return {out.values(), {}};
  }

  Problem rows(int64_t begin, int64_t end) const {
    return {end - begin, in, out_dim, slice_rows(x, in, begin, end), weight, bias, activation_type};
  }

  Expected exact() const {
    Expected out;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < out_dim; ++o) {
        double sum = bias.empty() ? 0 : bias[static_cast<size_t>(o)];
        double squares = sum * sum;
        for (int64_t i = 0; i < in; ++i) {
          const double term = x[static_cast<size_t>(t * in + i)] * flushed(weight[o * in + i]);
          sum += term;
          squares += term * term;
        }
        out.add(sum, std::sqrt(squares));
      }
    }
    return out;
  }
};

TEST_P(Linear, MatchesTheFormula) {
  struct Shape {
    int64_t tokens, in, out_dim;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 207, 13}, Shape{2, 13, 207}, Shape{13, 31, 31}, Shape{5, 1025, 3},
                             Shape{2, 4098, 7}, Shape{67, 64, 65}, Shape{3, 1, 5}, Shape{17, 257, 1},
                             Shape{4, 96, 48}}) {
    for (DType dtype : kDTypes) {
      for (bool bias : {false, true}) {
        SCOPED_TRACE(dtype_name(dtype) + " [" + std::to_string(shape.tokens) + ", " + std::to_string(shape.in) +
                     "] -> " + std::to_string(shape.out_dim));
        const Problem problem = Problem::random(random, shape.tokens, shape.in, shape.out_dim, dtype, bias);
        const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
        expect_close(outputs.out, problem.exact(), tolerance(shape.in));
      }
    }
  }
}

// Sizes around the borders of tiles, wherever they are.
TEST_P(Linear, MatchesTheFormulaAtRandomSizes) {
  for (int i = 0; i < 30; ++i) {
    const auto size = [&](int32_t most) { return int64_t{1} + random.ids(1, most)[0]; };
    const int64_t tokens = size(70), in = size(i % 2 == 0 ? 140 : 700), out_dim = size(50);
    const DType dtype = kDTypes[i % 3];
    SCOPED_TRACE(dtype_name(dtype) + " [" + std::to_string(tokens) + ", " + std::to_string(in) + "] -> " +
                 std::to_string(out_dim));
    const Problem problem = Problem::random(random, tokens, in, out_dim, dtype, i % 4 == 0);
    expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(in));
  }
}

// Larger than the panels of weights that a cache holds, and long rows.
TEST_P(Linear, LargeMatrices) {
  for (DType dtype : kDTypes) {
    SCOPED_TRACE(dtype_name(dtype));
    const Problem problem = Problem::random(random, 35, 2083, 530, dtype, true);
    const Outputs whole = problem.run(plain_runner());
    expect_close(whole.out, problem.exact(), tolerance(2083));
    expect_same_bits(problem.rows(34, 35).run(plain_runner()).out, slice_rows(whole.out, 530, 34, 35));
  }
}

// A token gets the same bits alone and in any batch.
TEST_P(Linear, RowsAreIndependent) {
  const std::pair<DType, DType> cases[] = {{DType::kF32, DType::kF32},
                                           {DType::kF16, DType::kF32},
                                           {DType::kBF16, DType::kF32},
                                           {DType::kBF16, DType::kBF16}};
  for (const auto& [dtype, activation_type] : cases) {
    for (int64_t in : {13, 207, 1025}) {
      SCOPED_TRACE(dtype_name(dtype) + " and " + dtype_name(activation_type) + ", in " + std::to_string(in));
      Problem problem = Problem::random(random, 70, in, 29, dtype, true);
      problem.activation_type = activation_type;
      const Outputs whole = problem.run(plain_runner());
      for (int64_t rows : {1, 2, 3, 4, 5, 6, 7, 16, 17, 33}) {
        std::vector<float> parts;
        for (int64_t t = 0; t < problem.tokens; t += rows) {
          append(parts, problem.rows(t, std::min(t + rows, problem.tokens)).run(plain_runner()).out);
        }
        expect_same_bits(parts, whole.out);
      }
    }
  }
}

// The largest and the smallest numbers of the 16-bit formats are still exact weights, float16's subnormal ones too;
// bfloat16's are zeros (the last two).
TEST_P(Linear, ExtremeWeights) {
  const std::pair<DType, std::vector<uint16_t>> cases[] = {
      {DType::kF16, {0x0001, 0x8001, 0x03ff, 0x7bff}},
      {DType::kBF16, {0x0080, 0x8080, 0x0100, 0x7a00, 0x007f, 0x8001}}};
  for (const auto& [dtype, weights] : cases) {
    for (uint16_t bits : weights) {
      SCOPED_TRACE(dtype_name(dtype) + " bits " + std::to_string(bits));
      Problem problem = Problem::random(random, 3, 67, 5, dtype, false);
      problem.weight.halves.assign(problem.weight.halves.size(), bits);
      const bool tiny = std::fabs(problem.weight[0]) < 1e-30;  // keeps the products normal
      for (float& v : problem.x) v *= tiny ? 1e30f : 1.0f;
      expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(67));
    }
  }
}

// To the nearest of the numbers with 8 bits of significand, ties to even, by their definition.
float nearest_bf16(float v) {
  int exponent;
  const float fraction = std::frexp(v, &exponent);  // 1/2 <= |fraction| < 1
  return std::ldexp(std::nearbyint(std::ldexp(fraction, 8)), exponent - 8);
}

// Rounded activations: the formula on numbers rounded before, where the processor multiplies pairs of bfloat16, and
// elsewhere the bits that float32 activations give, as with weights of another type.
class RoundedLinear : public Linear {
 protected:
  bool rounds() const { return multiplies_bf16(ops().name); }

  void check(const Problem& problem) {
    Problem rounded = problem;
    rounded.activation_type = DType::kBF16;
    const Outputs outputs = run_everywhere([&](const Runner& r) { return rounded.run(r); });
    if (!rounds() || problem.weight.dtype != DType::kBF16) {
      expect_same_bits(outputs, problem.run(plain_runner()));
      return;
    }
    for (float& v : rounded.x) v = nearest_bf16(v);
    expect_close(outputs.out, rounded.exact(), tolerance(problem.in));
    expect_same_bits(rounded.run(plain_runner()), outputs);
  }
};
INSTANTIATE_TEST_SUITE_P(Backends, RoundedLinear, ::testing::ValuesIn(backends()), backend_name);

TEST_P(RoundedLinear, MatchesTheFormulaOnRoundedNumbers) {
  struct Shape {
    int64_t tokens, in, out_dim;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 207, 13}, Shape{2, 13, 207}, Shape{13, 31, 31}, Shape{5, 1025, 3},
                             Shape{2, 4098, 7}, Shape{67, 64, 65}, Shape{3, 33, 5}, Shape{17, 257, 1}, Shape{4, 96, 48},
                             Shape{16, 768, 40}}) {
    for (DType dtype : kDTypes) {
      for (bool bias : {false, true}) {
        SCOPED_TRACE(dtype_name(dtype) + " [" + std::to_string(shape.tokens) + ", " + std::to_string(shape.in) +
                     "] -> " + std::to_string(shape.out_dim));
        check(Problem::random(random, shape.tokens, shape.in, shape.out_dim, dtype, bias));
      }
    }
  }
}

TEST_P(RoundedLinear, MatchesTheFormulaAtRandomSizes) {
  for (int i = 0; i < 30; ++i) {
    const auto size = [&](int32_t most) { return int64_t{1} + random.ids(1, most)[0]; };
    const int64_t tokens = size(70), in = size(i % 2 == 0 ? 140 : 700), out_dim = size(50);
    SCOPED_TRACE("[" + std::to_string(tokens) + ", " + std::to_string(in) + "] -> " + std::to_string(out_dim));
    check(Problem::random(random, tokens, in, out_dim, DType::kBF16, i % 4 == 0));
  }
}

// More tokens than a cache holds at a time, and long rows.
TEST_P(RoundedLinear, LargeMatrices) {
  Problem problem = Problem::random(random, 203, 2083, 130, DType::kBF16, true);
  problem.activation_type = DType::kBF16;
  const Outputs whole = problem.run(plain_runner());
  if (rounds()) {
    Problem rounded = problem;
    for (float& v : rounded.x) v = nearest_bf16(v);
    expect_close(whole.out, rounded.exact(), tolerance(2083));
  }
  for (int64_t t : {0, 95, 96, 202})
    expect_same_bits(problem.rows(t, t + 1).run(plain_runner()).out, slice_rows(whole.out, 130, t, t + 1));
}

// Ties between two neighbours go to the even one; NaN and infinity spoil their own row and no other.
TEST_P(RoundedLinear, RoundsToTheNearestEven) {
  Problem problem = Problem::random(random, 9, 45, 7, DType::kBF16, false);
  problem.activation_type = DType::kBF16;
  problem.weight.halves.assign(problem.weight.halves.size(), 0x3f80);  // 1
  const std::pair<float, float> cases[] = {{0x1.01p0f, 0x1p0f},          {0x1.03p0f, 0x1.04p0f},
                                           {0x1.010002p0f, 0x1.02p0f},   {0x1.00fffep0f, 0x1p0f},
                                           {-0x1.01p0f, -0x1p0f},        {-0x1.03p0f, -0x1.04p0f},
                                           {0x1.fffffep127f, INFINITY},  {NAN, NAN}};
  for (const auto& [number, rounded] : cases) {
    SCOPED_TRACE(number);
    problem.x.assign(problem.x.size(), 0.0f);
    problem.x[4 * 45 + 37] = number;
    const std::vector<float> out = problem.run(plain_runner()).out;
    for (size_t i = 0; i < out.size(); ++i) {
      const float expected = i / 7 != 4 ? 0.0f : rounds() ? rounded : number;
      EXPECT_TRUE(out[i] == expected || (std::isnan(expected) && std::isnan(out[i]))) << i << ": " << out[i];
    }
  }
}

}  // namespace
}  // namespace m4j::test
