// ssd_step and ssd_chunk: two ways to the same result.
#include <algorithm>
#include <cmath>
#include <limits>

#include "support/op_test.h"
#include "support/safetensors.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Ssd);

enum class Form { kStep, kChunk };
constexpr Form kForms[] = {Form::kStep, Form::kChunk};

struct Options {
  bool D = true, dt_bias = true, softplus = true;
};

struct Problem {
  int64_t tokens, heads, headdim, d_state, n_groups, chunk_size;
  bool softplus;
  std::vector<float> x;           // [T, H, P]
  std::vector<float> dt;          // [T, H]
  std::vector<float> A;           // [H]
  std::vector<float> B, C;        // [T, G, N]
  std::vector<float> D, dt_bias;  // optional [H]
  std::vector<float> state;       // [H, P, N]
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();

  static Problem random(Random& random, int64_t tokens, int64_t heads, int64_t headdim, int64_t d_state,
                        int64_t n_groups, int64_t chunk_size, const Options& options = {}) {
    const int64_t bc = tokens * n_groups * d_state;
    return {tokens, heads, headdim, d_state, n_groups, chunk_size, options.softplus,
            random.normal(tokens * heads * headdim),
            options.softplus ? random.normal(tokens * heads) : random.uniform(tokens * heads, 0.001f, 1),
            random.uniform(heads, -4, -0.01f), random.normal(bc), random.normal(bc),
            random.normal(heads, 1, options.D), random.uniform(heads, -3, 1, options.dt_bias && options.softplus),
            random.normal(heads * headdim * d_state)};
  }

  int64_t bc_cols() const { return n_groups * d_state; }
  int64_t x_cols() const { return heads * headdim; }

  Outputs run(const Runner& r, Form form) const {
    const auto x_memory = r.in(x, x_cols()), dt_memory = r.in(dt, heads);
    const auto B_memory = r.in(B, bc_cols()), C_memory = r.in(C, bc_cols());
    const auto A_memory = r.flat_in(A), D_memory = r.flat_in(D), bias_memory = r.flat_in(dt_bias);
    const auto state_memory = r.flat_inout(state);
    const auto out = r.out(tokens, x_cols());
    const SsdArgs args = {x_memory.data(), x_memory.ld(), dt_memory.data(), dt_memory.ld(), A_memory.data(),
                          B_memory.data(), C_memory.data(), B_memory.ld(), D_memory.data(), bias_memory.data(),
                          softplus, dt_min, dt_max, tokens, heads, headdim, d_state, n_groups, chunk_size,
                          state_memory.data(), out.data(), out.ld()};
    if (form == Form::kStep) r.execute(r.ops.ssd_step, args);
    else r.execute(r.ops.ssd_chunk, args, r.ops.ssd_chunk_scratch(headdim, d_state, chunk_size));
    return {out.values(), state_memory.values()};
  }

  Problem part(int64_t begin, int64_t end, const std::vector<float>& state_before) const {
    Problem p = *this;
    p.tokens = end - begin;
    p.x = slice_rows(x, x_cols(), begin, end);
    p.dt = slice_rows(dt, heads, begin, end);
    p.B = slice_rows(B, bc_cols(), begin, end);
    p.C = slice_rows(C, bc_cols(), begin, end);
    p.state = state_before;
    return p;
  }

  Outputs run_in_parts(const Runner& r, Form form, int64_t length) const {
    Outputs parts = {{}, state};
    for (int64_t t = 0; t < tokens; t += length) {
      const Outputs last = part(t, std::min(t + length, tokens), parts.state).run(r, form);
      append(parts.out, last.out);
      parts.state = last.state;
    }
    return parts;
  }

  struct Exact {
    Expected out, state;
  };

  // The recurrence, token by token.
  Exact exact() const {
    std::vector<double> h(state.begin(), state.end());
    std::vector<double> h_scale;
    for (double v : h) h_scale.push_back(std::fabs(v));
    Exact result;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t head = 0; head < heads; ++head) {
        const size_t hd = static_cast<size_t>(head);
        const int64_t bc = t * bc_cols() + head / (heads / n_groups) * d_state;
        double step = dt[static_cast<size_t>(t * heads + head)];
        if (!dt_bias.empty()) step += dt_bias[hd];
        if (softplus) step = step > 30 ? step : std::log1p(std::exp(step));
        step = std::clamp(step, static_cast<double>(dt_min), static_cast<double>(dt_max));
        const double decay = std::exp(step * A[hd]);
        for (int64_t p = 0; p < headdim; ++p) {
          const double input = x[static_cast<size_t>((t * heads + head) * headdim + p)];
          double y = D.empty() ? 0 : D[hd] * input;
          double scale = y;
          for (int64_t n = 0; n < d_state; ++n) {
            const size_t k = static_cast<size_t>((head * headdim + p) * d_state + n);
            const double b = B[static_cast<size_t>(bc + n)], c = C[static_cast<size_t>(bc + n)];
            h[k] = decay * h[k] + step * input * b;
            h_scale[k] = sum_of_squares_root(decay * h_scale[k], step * input * b);
            y += c * h[k];
            scale = sum_of_squares_root(scale, c * h_scale[k]);
          }
          result.out.add(y, scale);
        }
      }
    }
    result.state = {h, h_scale};
    return result;
  }
};

void expect_exact(const Outputs& outputs, const Problem& problem) {
  const Problem::Exact exact = problem.exact();
  const double allowed = tolerance(problem.d_state + std::min(problem.chunk_size, problem.tokens));
  expect_close(outputs.out, exact.out, allowed);
  expect_close(outputs.state, exact.state, allowed);
}

TEST_P(Ssd, MatchesTheRecurrence) {
  struct Shape {
    int64_t tokens, heads, headdim, d_state, n_groups, chunk_size;
  };
  for (const Shape& shape :
       {Shape{1, 1, 1, 1, 1, 1}, Shape{13, 3, 5, 7, 1, 4}, Shape{15, 2, 13, 16, 1, 16}, Shape{16, 2, 13, 16, 1, 16},
        Shape{17, 2, 13, 16, 2, 16}, Shape{207, 4, 13, 17, 2, 64}, Shape{65, 6, 3, 33, 3, 64},
        Shape{31, 2, 64, 128, 1, 256}, Shape{1, 5, 67, 19, 5, 256}, Shape{7, 3, 32, 64, 1, 1},
        Shape{67, 1, 37, 5, 1, 13}, Shape{300, 1, 8, 16, 1, 256}}) {
    SCOPED_TRACE("T " + std::to_string(shape.tokens) + ", H " + std::to_string(shape.heads) + ", P " +
                 std::to_string(shape.headdim) + ", N " + std::to_string(shape.d_state) + ", G " +
                 std::to_string(shape.n_groups) + ", chunk " + std::to_string(shape.chunk_size));
    const Problem problem = Problem::random(random, shape.tokens, shape.heads, shape.headdim, shape.d_state,
                                            shape.n_groups, shape.chunk_size);
    for (Form form : kForms) {
      SCOPED_TRACE(form == Form::kStep ? "ssd_step" : "ssd_chunk");
      expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r, form); }), problem);
    }
  }
}

TEST_P(Ssd, EveryCombinationOfOptions) {
  for (int bits = 0; bits < 8; ++bits) {
    SCOPED_TRACE("options " + std::to_string(bits));
    const Options options = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0};
    const Problem problem = Problem::random(random, 11, 2, 13, 7, 1, 4, options);
    for (Form form : kForms) {
      expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r, form); }), problem);
    }
  }
}

TEST_P(Ssd, StepsInPartsEqualTheWhole) {
  const Problem problem = Problem::random(random, 29, 3, 13, 19, 1, 8);
  const Outputs whole = problem.run(plain_runner(), Form::kStep);
  for (int64_t length : {1, 2, 7, 28}) {
    expect_same_bits(problem.run_in_parts(plain_runner(), Form::kStep, length), whole);
  }
}

// Parts that begin and end anywhere in a chunk, and steps in between, move results by rounding only.
TEST_P(Ssd, ChunksInPartsEqualTheWhole) {
  const Problem problem = Problem::random(random, 83, 4, 13, 19, 2, 16);
  const Outputs whole = problem.run(plain_runner(), Form::kChunk);
  for (int64_t length : {1, 7, 15, 16, 17, 32, 82}) {
    SCOPED_TRACE("parts of " + std::to_string(length));
    const Outputs parts = problem.run_in_parts(plain_runner(), Form::kChunk, length);
    expect_close(parts, whole, 1e-6);
  }
  const Outputs steps = problem.run(plain_runner(), Form::kStep);
  expect_close(steps, whole, 1e-6);
}

TEST_P(Ssd, ChunkSizeMovesResultsByRoundingOnly) {
  Problem problem = Problem::random(random, 131, 2, 13, 19, 1, 1);
  const Outputs steps = problem.run(plain_runner(), Form::kStep);
  for (int64_t chunk_size : {1, 2, 13, 64, 130, 131, 132, 4096}) {
    SCOPED_TRACE("chunk " + std::to_string(chunk_size));
    problem.chunk_size = chunk_size;
    const Outputs chunks = problem.run(plain_runner(), Form::kChunk);
    expect_close(chunks, steps, 1e-6);
  }
}

TEST_P(Ssd, TimeStepLimits) {
  struct Limits {
    float low, high;
  };
  for (const Limits& limits : {Limits{0.1f, 0.2f}, Limits{0.5f, std::numeric_limits<float>::infinity()},
                               Limits{0, 0.05f}, Limits{0.3f, 0.3f}, Limits{0, 0}}) {
    SCOPED_TRACE("limits " + std::to_string(limits.low) + " " + std::to_string(limits.high));
    Problem problem = Problem::random(random, 37, 3, 13, 7, 1, 16);
    problem.dt_min = limits.low;
    problem.dt_max = limits.high;
    for (Form form : kForms) {
      expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r, form); }), problem);
    }
  }
}

// From decays that vanish within a token, whose sums over a chunk are large, to almost none.
TEST_P(Ssd, ExtremeDecays) {
  for (float a : {-1e6f, -1e3f, -30.0f, -1.0f, -1e-6f, 0.0f}) {
    SCOPED_TRACE("A " + std::to_string(a));
    Problem problem = Problem::random(random, 300, 2, 5, 7, 1, 256);
    problem.A.assign(problem.A.size(), a);
    for (Form form : kForms) {
      expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r, form); }), problem);
    }
  }
}

// Over the longest chunk the decays' exponents add up to thousands, of which neighbours differ by about one: sums in
// float32 would lose the digits that matter.
TEST_P(Ssd, LongestChunkKeepsDecaysAccurate) {
  Problem problem = Problem::random(random, 4100, 1, 3, 5, 1, 4096, {.D = false, .dt_bias = false, .softplus = false});
  problem.dt = random.uniform(4100, 0.5f, 1.5f);
  problem.A = {-1};
  const Problem::Exact exact = problem.exact();
  for (Form form : kForms) {
    const Outputs outputs = problem.run(plain_runner(), form);
    expect_close(outputs.out, exact.out, 3e-6);
    expect_close(outputs.state, exact.state, 3e-6);
  }
}

TEST_P(Ssd, SoftplusFarFromZero) {
  for (float near : {-60.0f, -21.0f, 18.0f, 21.0f, 90.0f, 1e4f}) {
    SCOPED_TRACE("softplus near " + std::to_string(near));
    Problem problem = Problem::random(random, 19, 2, 5, 7, 1, 8, {.D = false, .dt_bias = false});
    problem.dt = random.uniform(19 * 2, near, near + 2);
    problem.state.assign(problem.state.size(), 0.0f);
    for (Form form : kForms) {
      expect_exact(run_everywhere([&](const Runner& r) { return problem.run(r, form); }), problem);
    }
  }
}

TEST_P(Ssd, Goldens) {
  for (const char* name : {"op-ssd-small", "op-ssd-long", "op-ssd-init-groups"}) {
    SCOPED_TRACE(name);
    const auto golden = read_golden(std::string(name) + ".safetensors");
    // x, out [batch, L, H, P]; dt [batch, L, H]; A [H]; B, C [batch, L, G, N]; states [batch, H, P, N]
    const auto& x_shape = golden.at("x").shape;
    const int64_t batch = x_shape[0], L = x_shape[1], H = x_shape[2], P = x_shape[3];
    const int64_t G = golden.at("B").shape[2], N = golden.at("B").shape[3];
    for (int64_t i = 0; i < batch; ++i) {
      const auto item = [&](const char* tensor) {
        const std::vector<float>& all = golden.at(tensor).values;
        return slice_rows(all, static_cast<int64_t>(all.size()) / batch, i, i + 1);
      };
      Problem problem = {L, H, P, N, G, 0, true, item("x"), item("dt"), golden.at("A").values, item("B"), item("C"),
                         golden.at("D").values, golden.at("dt_bias").values, item("initial_state")};
      for (int64_t chunk_size : {13, 64, 256}) {
        problem.chunk_size = chunk_size;
        for (Form form : kForms) {
          SCOPED_TRACE("chunk " + std::to_string(chunk_size));
          const Outputs outputs = problem.run(plain_runner(), form);
          expect_close(outputs, {item("out"), item("last_state")}, 1e-5);
        }
      }
    }
  }
}

}  // namespace
}  // namespace m4j::test
