#include <cmath>

#include "support/op_test.h"
#include "support/safetensors.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(SelectiveScan);

enum class Target { kSeparate, kOverU, kOverZ };

struct Options {
  bool D = true, z = true, delta_bias = true, softplus = true;
};

struct Problem {
  int64_t tokens, d_inner, d_state, n_groups;
  bool softplus;
  std::vector<float> u, delta;          // [T, E]
  std::vector<float> A;                 // [N, E]
  std::vector<float> B, C;              // [T, G, N]
  std::vector<float> D, z, delta_bias;  // optional [E], [T, E], [E]
  std::vector<float> state;             // [N, E]

  static Problem random(Random& random, int64_t tokens, int64_t d_inner, int64_t d_state, int64_t n_groups,
                        const Options& options = {}) {
    const int64_t bc = tokens * n_groups * d_state;
    return {tokens, d_inner, d_state, n_groups, options.softplus, random.normal(tokens * d_inner),
            options.softplus ? random.normal(tokens * d_inner, 2) : random.uniform(tokens * d_inner, 0.001f, 1),
            random.uniform(d_state * d_inner, -4, -0.01f), random.normal(bc), random.normal(bc),
            random.normal(d_inner, 1, options.D), random.normal(tokens * d_inner, 2, options.z),
            random.uniform(d_inner, -2, 1, options.delta_bias && options.softplus), random.normal(d_state * d_inner)};
  }

  int64_t bc_cols() const { return n_groups * d_state; }

  Outputs run(const Runner& r, Target target = Target::kSeparate) const {
    const bool over_u = target == Target::kOverU, over_z = target == Target::kOverZ;
    const auto u_memory = over_u ? Guarded<float>::inout(u, d_inner, r.layout) : r.in(u, d_inner);
    const auto z_memory = over_z ? Guarded<float>::inout(z, d_inner, r.layout) : r.in(z, d_inner);
    const auto delta_memory = r.in(delta, d_inner);
    const auto B_memory = r.in(B, bc_cols()), C_memory = r.in(C, bc_cols());
    const auto A_memory = r.flat_in(A), D_memory = r.flat_in(D), bias_memory = r.flat_in(delta_bias);
    const auto state_memory = r.flat_inout(state);
    const auto out_memory = r.out(over_u || over_z ? 0 : tokens, d_inner);
    const auto& out = over_u ? u_memory : over_z ? z_memory : out_memory;
    r.execute(r.ops.selective_scan,
              {u_memory.data(), u_memory.ld(), delta_memory.data(), delta_memory.ld(), A_memory.data(),
               B_memory.data(), C_memory.data(), B_memory.ld(), D_memory.data(), z_memory.data(), z_memory.ld(),
               bias_memory.data(), softplus, tokens, d_inner, d_state, n_groups, state_memory.data(), out.data(),
               out.ld()});
    return {out.values(), state_memory.values()};
  }

  Problem part(int64_t begin, int64_t end, const std::vector<float>& state_before) const {
    Problem p = *this;
    p.tokens = end - begin;
    p.u = slice_rows(u, d_inner, begin, end);
    p.delta = slice_rows(delta, d_inner, begin, end);
    p.z = slice_rows(z, d_inner, begin, end);
    p.B = slice_rows(B, bc_cols(), begin, end);
    p.C = slice_rows(C, bc_cols(), begin, end);
    p.state = state_before;
    return p;
  }

  struct Exact {
    Expected out, state;
  };

  Exact exact() const {
    std::vector<double> h(state.begin(), state.end());  // [N, E]
    std::vector<double> h_scale;
    for (double v : h) h_scale.push_back(std::fabs(v));
    Exact result;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t e = 0; e < d_inner; ++e) {
        const size_t at = static_cast<size_t>(t * d_inner + e), channel = static_cast<size_t>(e);
        const int64_t bc = t * bc_cols() + e / (d_inner / n_groups) * d_state;
        double step = delta[at];
        if (!delta_bias.empty()) step += delta_bias[channel];
        if (softplus) step = step > 30 ? step : std::log1p(std::exp(step));
        double y = D.empty() ? 0 : static_cast<double>(D[channel]) * u[at];
        double scale = y;
        for (int64_t n = 0; n < d_state; ++n) {
          const size_t k = static_cast<size_t>(n * d_inner + e);
          const double decay = std::exp(step * A[k]), c = C[static_cast<size_t>(bc + n)];
          const double input = step * B[static_cast<size_t>(bc + n)] * u[at];
          h[k] = decay * h[k] + input;
          h_scale[k] = sum_of_squares_root(decay * h_scale[k], input);
          y += c * h[k];
          scale = sum_of_squares_root(scale, c * h_scale[k]);
        }
        const double gate = z.empty() ? 1 : z[at] / (1 + std::exp(-static_cast<double>(z[at])));
        result.out.add(y * gate, scale * std::fabs(gate));
      }
    }
    result.state = {h, h_scale};
    return result;
  }
};

void expect_exact(const Outputs& outputs, const Problem& problem) {
  const Problem::Exact exact = problem.exact();
  expect_close(outputs.out, exact.out, tolerance(problem.d_state));
  expect_close(outputs.state, exact.state, tolerance(problem.d_state));
}

TEST_P(SelectiveScan, MatchesTheFormula) {
  struct Shape {
    int64_t tokens, d_inner, d_state, n_groups;
  };
  for (const Shape& shape : {Shape{1, 1, 1, 1}, Shape{1, 207, 16, 1}, Shape{2, 13, 16, 1}, Shape{13, 31, 7, 1},
                             Shape{17, 64, 16, 4}, Shape{5, 69, 13, 3}, Shape{207, 5, 3, 5}, Shape{3, 130, 33, 2}}) {
    SCOPED_TRACE("T " + std::to_string(shape.tokens) + ", E " + std::to_string(shape.d_inner) + ", N " +
                 std::to_string(shape.d_state) + ", G " + std::to_string(shape.n_groups));
    const Problem problem = Problem::random(random, shape.tokens, shape.d_inner, shape.d_state, shape.n_groups);
    expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
  }
}

TEST_P(SelectiveScan, EveryCombinationOfOptions) {
  for (int bits = 0; bits < 16; ++bits) {
    SCOPED_TRACE("options " + std::to_string(bits));
    const Options options = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
    const Problem problem = Problem::random(random, 7, 37, 5, 1, options);
    expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
  }
}

TEST_P(SelectiveScan, InPlaceGivesTheSameBits) {
  const Problem problem = Problem::random(random, 13, 69, 16, 3);
  const Outputs separate = problem.run(plain_runner());
  for (Target target : {Target::kOverU, Target::kOverZ}) {
    expect_same_bits(run_everywhere([&](const Runner& r) { return problem.run(r, target); }), separate);
  }
}

TEST_P(SelectiveScan, PartsEqualTheWhole) {
  const Problem problem = Problem::random(random, 41, 37, 16, 1);
  const Outputs whole = problem.run(plain_runner());
  for (int64_t length : {1, 2, 3, 13, 40}) {
    SCOPED_TRACE("parts of " + std::to_string(length));
    Outputs parts = {{}, problem.state};
    for (int64_t t = 0; t < problem.tokens; t += length) {
      const Outputs part = problem.part(t, std::min(t + length, problem.tokens), parts.state).run(plain_runner());
      append(parts.out, part.out);
      parts.state = part.state;
    }
    expect_same_bits(parts, whole);
  }
}

// Fast decay, where exp(delta A) vanishes, and almost none.
TEST_P(SelectiveScan, ExtremeDecays) {
  for (float a : {-1e6f, -1e3f, -60.0f, -1e-6f, 0.0f}) {
    SCOPED_TRACE("A " + std::to_string(a));
    Problem problem = Problem::random(random, 31, 37, 5, 1);
    problem.A.assign(problem.A.size(), a);
    expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
  }
}

// Only very negative arguments: delta is tiny, and its relative precision decides.
TEST_P(SelectiveScan, SoftplusFarBelowZero) {
  for (float low : {-60.0f, -21.0f, -8.0f}) {
    SCOPED_TRACE("softplus near " + std::to_string(low));
    Problem problem = Problem::random(random, 9, 37, 5, 1, {.D = false, .z = true, .delta_bias = false});
    problem.delta = random.uniform(9 * 37, low - 2, low);
    problem.state.assign(problem.state.size(), 0.0f);
    expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
  }
}

TEST_P(SelectiveScan, SoftplusFarAboveZero) {
  for (float high : {18.0f, 21.0f, 90.0f, 1e4f}) {
    SCOPED_TRACE("softplus near " + std::to_string(high));
    Problem problem = Problem::random(random, 9, 37, 5, 1);
    problem.delta = random.uniform(9 * 37, high, high + 3);
    expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
  }
}

TEST_P(SelectiveScan, ExtremeGates) {
  Problem problem = Problem::random(random, 9, 37, 5, 1);
  const float extremes[] = {100, -100, 88.5f, -88.5f, -1e4f, 1e4f, 0};
  for (size_t i = 0; i < problem.z.size(); ++i) problem.z[i] = extremes[i % std::size(extremes)];
  expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r); }), problem);
}

// [rows, cols] -> [cols, rows]
std::vector<float> transposed(const float* m, int64_t rows, int64_t cols) {
  std::vector<float> result;
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t r = 0; r < rows; ++r) result.push_back(m[r * cols + c]);
  }
  return result;
}

TEST_P(SelectiveScan, Goldens) {
  for (const char* name : {"op-scan-small", "op-scan-long", "op-scan-init-groups"}) {
    SCOPED_TRACE(name);
    const auto golden = read_golden(std::string(name) + ".safetensors");
    // u, delta, z, out [batch, E, L]; A [E, N]; B, C [batch, G, N, L]; states [batch, E, N]
    const auto& b_shape = golden.at("B").shape;
    const int64_t batch = b_shape[0], G = b_shape[1], N = b_shape[2], L = b_shape[3], E = golden.at("A").shape[0];
    const auto item = [&](const char* tensor, int64_t index, int64_t rows, int64_t cols) {
      return transposed(golden.at(tensor).values.data() + index * rows * cols, rows, cols);
    };
    for (int64_t i = 0; i < batch; ++i) {
      const Problem problem = {L, E, N, G, true,
                               item("u", i, E, L), item("delta", i, E, L), item("A", 0, E, N),
                               item("B", i, G * N, L), item("C", i, G * N, L), golden.at("D").values,
                               item("z", i, E, L), golden.at("delta_bias").values, item("initial_state", i, E, N)};
      const Outputs outputs = run_everywhere([&](const Runner& r) { return problem.run(r); });
      expect_close(outputs, {item("out", i, E, L), item("last_state", i, E, N)}, 1e-5);
    }
  }
}

}  // namespace
}  // namespace m4j::test
