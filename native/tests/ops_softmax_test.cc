#include <algorithm>
#include <cmath>
#include <limits>

#include "support/op_test.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Softmax);

enum class Target { kSeparate, kInPlace };

struct Problem {
  int64_t tokens, n;
  std::vector<float> x;
  bool log;

  Outputs run(const Runner& r, Target target = Target::kSeparate) const {
    const bool in_place = target == Target::kInPlace;
    const auto x_memory = in_place ? Guarded<float>::inout(x, n, r.layout) : r.in(x, n);
    const auto out_memory = r.out(in_place ? 0 : tokens, n);
    const auto& out = in_place ? x_memory : out_memory;
    r.execute(log ? r.ops.log_softmax : r.ops.softmax,
              {x_memory.data(), x_memory.ld(), tokens, n, out.data(), out.ld()});
    return {out.values(), {}};
  }

  Expected exact() const {
    Expected out;
    for (auto row = x.begin(); row != x.end(); row += n) {
      const double max = *std::max_element(row, row + n);
      double sum = 0;
      for (auto v = row; v != row + n; ++v) sum += std::exp(*v - max);
      for (auto v = row; v != row + n; ++v) {
        // A difference of x and the logarithm of the sum: rounding goes with the larger of them.
        if (log) out.add(*v - max - std::log(sum), std::fabs(max));
        else out.add(std::exp(*v - max) / sum, 0);
      }
    }
    return out;
  }
};

TEST_P(Softmax, MatchesTheFormula) {
  for (bool log : {false, true}) {
    for (int64_t n : {1, 2, 13, 64, 207, 4098, 50277}) {
      SCOPED_TRACE((log ? "log_softmax, n " : "softmax, n ") + std::to_string(n));
      const int64_t tokens = n > 4000 ? 2 : 7;
      const Problem problem = {tokens, n, random.normal(tokens * n, 5), log};
      const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
      expect_close(outputs.out, problem.exact(), tolerance(n));
    }
  }
}

TEST_P(Softmax, InPlaceGivesTheSameBits) {
  for (bool log : {false, true}) {
    const Problem problem = {5, 207, random.normal(5 * 207), log};
    const Outputs separate = problem.run(plain_runner());
    const Outputs in_place = run_everywhere([&](const Runner& r) { return problem.run(r, Target::kInPlace); });
    expect_same_bits(in_place, separate);
  }
}

TEST_P(Softmax, RowsAreIndependent) {
  for (bool log : {false, true}) {
    const Problem problem = {13, 67, random.normal(13 * 67), log};
    const Outputs whole = problem.run(plain_runner());
    for (int64_t rows : {1, 2, 5}) {
      std::vector<float> parts;
      for (int64_t t = 0; t < problem.tokens; t += rows) {
        const int64_t end = std::min(t + rows, problem.tokens);
        append(parts, Problem{end - t, 67, slice_rows(problem.x, 67, t, end), log}.run(plain_runner()).out);
      }
      expect_same_bits(parts, whole.out);
    }
  }
}

TEST_P(Softmax, ExtremeInputs) {
  for (bool log : {false, true}) {
    for (float magnitude : {30.0f, 1000.0f, 1e30f}) {
      SCOPED_TRACE((log ? "log_softmax of " : "softmax of ") + std::to_string(magnitude));
      Problem problem = {3, 37, random.uniform(3 * 37, -1, 1), log};
      for (float& v : problem.x) v *= magnitude;
      expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(37));
    }
  }
}

TEST_P(Softmax, EqualInputsShareEqually) {
  const int64_t n = 207;
  for (float v : {0.0f, -1e30f, 1e30f, 88.0f}) {
    const Problem problem = {2, n, std::vector<float>(2 * n, v), false};
    const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
    expect_close(outputs.out, std::vector<float>(2 * n, 1.0f / n), tolerance(n));
  }
}

// Masked logits have no probability and disturb no other.
TEST_P(Softmax, MinusInfinityIsMasked) {
  const int64_t n = 67;
  Problem problem = {3, n, random.normal(3 * n), false};
  for (size_t i = 0; i < problem.x.size(); i += 4) problem.x[i] = -std::numeric_limits<float>::infinity();
  expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(n));
}

}  // namespace
}  // namespace m4j::test
