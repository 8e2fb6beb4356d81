#include <cmath>

#include "support/op_test.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Conv1d);

struct Problem {
  int64_t tokens, channels, d_conv;
  bool silu;
  std::vector<float> x;       // [T, C]
  std::vector<float> weight;  // [K, C]
  std::vector<float> bias;    // optional [C]
  std::vector<float> window;  // [K-1, C]

  static Problem random(Random& random, int64_t tokens, int64_t channels, int64_t d_conv, bool silu, bool bias) {
    return {tokens, channels, d_conv, silu, random.normal(tokens * channels), random.normal(d_conv * channels),
            random.normal(channels, 1, bias), random.normal((d_conv - 1) * channels)};
  }

  Outputs run(const Runner& r) const {
    const auto x_memory = r.in(x, channels);
    const auto weight_memory = r.flat_in(weight), bias_memory = r.flat_in(bias);
    const auto window_memory = r.flat_inout(window);
    const auto out = r.out(tokens, channels);
    r.execute(r.ops.conv1d, {x_memory.data(), x_memory.ld(), weight_memory.data(), bias_memory.data(),
                             window_memory.data(), tokens, channels, d_conv, silu, out.data(), out.ld()});
    return {out.values(), window_memory.values()};
  }

  Problem part(int64_t begin, int64_t end, const std::vector<float>& window_before) const {
    Problem p = *this;
    p.tokens = end - begin;
    p.x = slice_rows(x, channels, begin, end);
    p.window = window_before;
    return p;
  }

  // The window followed by x: what the convolution runs over.
  std::vector<float> inputs() const {
    std::vector<float> all = window;
    append(all, x);
    return all;
  }

  std::vector<float> exact_window() const {
    return slice_rows(inputs(), channels, tokens, tokens + d_conv - 1);
  }

  Expected exact() const {
    const std::vector<float> all = inputs();
    Expected out;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t c = 0; c < channels; ++c) {
        double y = bias.empty() ? 0 : bias[static_cast<size_t>(c)];
        double squares = y * y;
        for (int64_t k = 0; k < d_conv; ++k) {
          const double term = static_cast<double>(all[static_cast<size_t>((t + k) * channels + c)]) *
                              weight[static_cast<size_t>(k * channels + c)];
          y += term;
          squares += term * term;
        }
        const double sigmoid = silu ? 1 / (1 + std::exp(-y)) : 1;
        out.add(y * sigmoid, std::sqrt(squares) * sigmoid);
      }
    }
    return out;
  }
};

TEST_P(Conv1d, MatchesTheFormula) {
  struct Shape {
    int64_t tokens, channels, d_conv;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{1, 13, 4}, Shape{2, 207, 4}, Shape{3, 64, 4}, Shape{4, 67, 4},
                             Shape{13, 31, 3}, Shape{207, 5, 2}, Shape{5, 33, 7}, Shape{17, 129, 5}, Shape{6, 19, 1},
                             Shape{2, 3, 13}}) {
    for (bool silu : {false, true}) {
      for (bool bias : {false, true}) {
        SCOPED_TRACE("[" + std::to_string(shape.tokens) + ", " + std::to_string(shape.channels) + "], d_conv " +
                     std::to_string(shape.d_conv));
        const Problem problem = Problem::random(random, shape.tokens, shape.channels, shape.d_conv, silu, bias);
        const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
        expect_close(outputs.out, problem.exact(), tolerance(shape.d_conv));
        expect_same_bits(outputs.state, problem.exact_window());
      }
    }
  }
}

// Also with parts shorter than the window.
TEST_P(Conv1d, PartsEqualTheWhole) {
  for (int64_t d_conv : {1, 2, 4, 7}) {
    const Problem problem = Problem::random(random, 23, 37, d_conv, true, true);
    const Outputs whole = problem.run(plain_runner());
    for (int64_t length : {1, 2, 3, 5, 22}) {
      SCOPED_TRACE("d_conv " + std::to_string(d_conv) + ", parts of " + std::to_string(length));
      Outputs parts = {{}, problem.window};
      for (int64_t t = 0; t < problem.tokens; t += length) {
        const Outputs part = problem.part(t, std::min(t + length, problem.tokens), parts.state).run(plain_runner());
        append(parts.out, part.out);
        parts.state = part.state;
      }
      expect_same_bits(parts, whole);
    }
  }
}

TEST_P(Conv1d, ExtremeInputsOfSilu) {
  Problem problem = Problem::random(random, 9, 37, 1, true, false);
  problem.weight.assign(problem.weight.size(), 1.0f);
  const float extremes[] = {100, -100, 88.5f, -88.5f, 20, -20, -1e6f, 1e6f, 0, 1e-30f, -1e30f};
  for (size_t i = 0; i < problem.x.size(); ++i) problem.x[i] = extremes[i % std::size(extremes)];
  const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
  expect_close(outputs.out, problem.exact(), tolerance(1));
  for (size_t i = 0; i < outputs.out.size(); ++i) {
    const double x = problem.x[i];
    ASSERT_NEAR(outputs.out[i], x / (1 + std::exp(-x)), 1e-6 * std::fabs(x) + 1e-6);
  }
}

// Only inputs where silu nearly vanishes: its relative precision decides.
TEST_P(Conv1d, VeryNegativeInputsOfSilu) {
  Problem problem = Problem::random(random, 9, 37, 1, true, false);
  problem.weight.assign(problem.weight.size(), 1.0f);
  problem.x = random.uniform(9 * 37, -24, -16);
  expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(1));
}

}  // namespace
}  // namespace m4j::test
