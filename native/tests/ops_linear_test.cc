#include <array>
#include <cmath>
#include <utility>

#include "support/op_test.h"
#include "support/weights.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Linear);

struct Problem {
  int64_t tokens, in, out_dim;
  std::vector<float> x;     // [T, in]
  Weights weight;           // [out, in]
  std::vector<float> bias;  // optional [out]

  static Problem random(Random& random, int64_t tokens, int64_t in, int64_t out_dim, DType dtype, bool bias) {
    return {tokens, in, out_dim, random.normal(tokens * in), Weights::random(random, dtype, out_dim * in),
            random.normal(out_dim, 1, bias)};
  }

  Outputs run(const Runner& r) const {
    const auto x_memory = r.in(x, in);
    const GuardedWeights weight_memory(weight, in, r.layout);
    const auto bias_memory = r.flat_in(bias);
    const auto out = r.out(tokens, out_dim);
    r.execute(r.ops.linear,
              {x_memory.data(), x_memory.ld(), weight_memory.data(), weight.dtype, weight_memory.ld(),
               bias_memory.data(), tokens, in, out_dim, out.data(), out.ld()},
              r.ops.linear_scratch(in, weight.dtype));
    return {out.values(), {}};
  }

  Problem rows(int64_t begin, int64_t end) const {
    return {end - begin, in, out_dim, slice_rows(x, in, begin, end), weight, bias};
  }

  Expected exact() const {
    Expected out;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < out_dim; ++o) {
        double sum = bias.empty() ? 0 : bias[static_cast<size_t>(o)];
        double squares = sum * sum;
        for (int64_t i = 0; i < in; ++i) {
          const double term = x[static_cast<size_t>(t * in + i)] * weight[o * in + i];
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
  for (DType dtype : kDTypes) {
    for (int64_t in : {13, 207, 1025}) {
      SCOPED_TRACE(dtype_name(dtype) + ", in " + std::to_string(in));
      const Problem problem = Problem::random(random, 70, in, 29, dtype, true);
      const Outputs whole = problem.run(plain_runner());
      for (int64_t rows : {1, 2, 3, 4, 7, 16, 17, 33}) {
        std::vector<float> parts;
        for (int64_t t = 0; t < problem.tokens; t += rows) {
          append(parts, problem.rows(t, std::min(t + rows, problem.tokens)).run(plain_runner()).out);
        }
        expect_same_bits(parts, whole.out);
      }
    }
  }
}

// The largest and the smallest numbers of the 16-bit formats are still exact weights, float16's subnormal ones too.
// (bfloat16's are subnormal in float32 as well and count as zero.)
TEST_P(Linear, ExtremeWeights) {
  const std::pair<DType, std::array<uint16_t, 4>> cases[] = {{DType::kF16, {0x0001, 0x8001, 0x03ff, 0x7bff}},
                                                             {DType::kBF16, {0x0080, 0x8080, 0x0100, 0x7a00}}};
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

}  // namespace
}  // namespace m4j::test
