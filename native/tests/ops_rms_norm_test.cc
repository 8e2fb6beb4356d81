#include <cmath>

#include "support/op_test.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(RmsNorm);

enum class Target { kSeparate, kInPlace };

struct Problem {
  int64_t tokens, dim, n_groups;
  std::vector<float> x, residual, gate, weight;  // the last three optional
  float eps = 1e-5f;

  static Problem random(Random& random, int64_t tokens, int64_t dim, int64_t n_groups, bool residual, bool gate,
                        bool weight) {
    return {tokens, dim, n_groups, random.normal(tokens * dim), random.normal(tokens * dim, 1, residual),
            random.normal(tokens * dim, 3, gate), random.normal(dim, 1, weight)};
  }

  // `state` is x after the op.
  Outputs run(const Runner& r, Target target = Target::kSeparate) const {
    const bool in_place = target == Target::kInPlace;
    const auto x_memory = in_place || !residual.empty() ? Guarded<float>::inout(x, dim, r.layout) : r.in(x, dim);
    const auto residual_memory = r.in(residual, dim), gate_memory = r.in(gate, dim);
    const auto weight_memory = r.flat_in(weight);
    const auto out_memory = r.out(in_place ? 0 : tokens, dim);
    const auto& out = in_place ? x_memory : out_memory;
    r.execute(r.ops.rms_norm,
              {x_memory.data(), x_memory.ld(), residual_memory.data(), residual_memory.ld(), gate_memory.data(),
               gate_memory.ld(), weight_memory.data(), eps, tokens, dim, n_groups, out.data(), out.ld()});
    return {out.values(), in_place ? std::vector<float>{} : x_memory.values()};
  }

  Problem rows(int64_t begin, int64_t end) const {
    return {end - begin, dim, n_groups, slice_rows(x, dim, begin, end), slice_rows(residual, dim, begin, end),
            slice_rows(gate, dim, begin, end), weight, eps};
  }

  std::vector<float> exact_x() const {
    std::vector<float> sum = x;
    for (size_t i = 0; i < residual.size(); ++i) sum[i] += residual[i];
    return sum;
  }

  Expected exact() const {
    const std::vector<float> sum = exact_x();
    const int64_t group_dim = dim / n_groups;
    Expected out;
    for (int64_t first = 0; first < tokens * dim; first += group_dim) {
      std::vector<double> v;
      double squares = 0;
      for (int64_t i = first; i < first + group_dim; ++i) {
        const size_t k = static_cast<size_t>(i);
        v.push_back(gate.empty() ? sum[k] : sum[k] * (gate[k] / (1 + std::exp(-static_cast<double>(gate[k])))));
        squares += v.back() * v.back();
      }
      const double rms = std::sqrt(squares / static_cast<double>(group_dim) + eps);
      for (int64_t i = 0; i < group_dim; ++i) {
        const double w = weight.empty() ? 1 : weight[static_cast<size_t>((first + i) % dim)];
        out.add(v[static_cast<size_t>(i)] / rms * w, 0);
      }
    }
    return out;
  }
};

TEST_P(RmsNorm, MatchesTheFormula) {
  struct Shape {
    int64_t tokens, dim, n_groups;
  };
  for (const Shape& shape : {Shape{1, 1, 1}, Shape{2, 13, 1}, Shape{13, 207, 3}, Shape{5, 64, 8}, Shape{3, 769, 1},
                             Shape{2, 4098, 2}, Shape{7, 35, 5}}) {
    for (int options = 0; options < 8; ++options) {
      SCOPED_TRACE("dim " + std::to_string(shape.dim) + ", options " + std::to_string(options));
      const Problem problem = Problem::random(random, shape.tokens, shape.dim, shape.n_groups, options & 1,
                                              options & 2, options & 4);
      const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
      expect_close(outputs.out, problem.exact(), tolerance(shape.dim));
      expect_same_bits(outputs.state, problem.exact_x());
    }
  }
}

TEST_P(RmsNorm, InPlaceGivesTheSameBits) {
  for (bool gate : {false, true}) {
    const Problem problem = Problem::random(random, 5, 207, 3, false, gate, true);
    const Outputs separate = problem.run(plain_runner());
    const Outputs in_place = run_everywhere([&](const Runner& r) { return problem.run(r, Target::kInPlace); });
    expect_same_bits(in_place.out, separate.out);
  }
}

TEST_P(RmsNorm, RowsAreIndependent) {
  const Problem problem = Problem::random(random, 13, 207, 3, true, true, true);
  const Outputs whole = problem.run(plain_runner());
  for (int64_t rows : {1, 2, 5}) {
    Outputs parts;
    for (int64_t t = 0; t < problem.tokens; t += rows) {
      const Outputs part = problem.rows(t, std::min(t + rows, problem.tokens)).run(plain_runner());
      append(parts.out, part.out);
      append(parts.state, part.state);
    }
    expect_same_bits(parts, whole);
  }
}

TEST_P(RmsNorm, ZeroRowsStayZero) {
  Problem problem = Problem::random(random, 3, 13, 1, false, false, true);
  problem.x.assign(problem.x.size(), 0.0f);
  for (float v : run_everywhere([&](const Runner& r) { return problem.run(r); }).out) EXPECT_EQ(v, 0.0f);
}

TEST_P(RmsNorm, ExtremeMagnitudes) {
  for (float magnitude : {1e-30f, 1e-12f, 1e12f, 1e17f}) {
    SCOPED_TRACE(magnitude);
    Problem problem = Problem::random(random, 3, 207, 1, false, false, true);
    for (float& v : problem.x) v *= magnitude;
    expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(207));
  }
}

TEST_P(RmsNorm, ExtremeGates) {
  Problem problem = Problem::random(random, 4, 207, 3, false, true, true);
  const float extremes[] = {100, -100, 88, -88, -1000, 1e4f, 0, -20, 20};
  for (size_t i = 0; i < problem.gate.size(); ++i) problem.gate[i] = extremes[i % std::size(extremes)];
  expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(207));
}

// Only values where silu nearly vanishes: its relative precision decides.
TEST_P(RmsNorm, VeryNegativeGates) {
  Problem problem = Problem::random(random, 3, 64, 1, false, true, false);
  problem.gate = random.uniform(3 * 64, -24, -16);
  problem.eps = 1e-30f;
  expect_close(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact(), tolerance(64));
}

}  // namespace
}  // namespace m4j::test
