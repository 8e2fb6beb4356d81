#include <cmath>
#include <limits>

#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

struct Shape {
  int64_t heads, headdim, d_state, n_groups;
};

struct Problem {
  DType dtype;
  int64_t tokens, slots;
  Shape shape;
  bool softplus = true;
  float dt_max = std::numeric_limits<float>::infinity();
  std::vector<float> x, dt, A, B, C, D, dt_bias, states;
  DType state_type = DType::kF32;

  Problem(Random& random, DType dtype, const Ragged& batch, const Shape& s, bool with_D = true, bool with_bias = true)
      : dtype(dtype), tokens(batch.tokens), slots(batch.slots), shape(s),
        x(rounded(random.normal(tokens * row()), dtype)), dt(rounded(random.normal(tokens * s.heads, 2), dtype)),
        A(random.uniform(s.heads, -4, -0.01f)), B(rounded(random.normal(tokens * bc()), dtype)),
        C(rounded(random.normal(tokens * bc()), dtype)), D(random.normal(s.heads, 1, with_D)),
        dt_bias(random.uniform(s.heads, -2, 1, with_bias)), states(random.normal(slots * state_floats())) {}

  int64_t row() const { return shape.heads * shape.headdim; }
  int64_t bc() const { return shape.n_groups * shape.d_state; }
  int64_t state_floats() const { return row() * shape.d_state; }

  Outputs run(const Ragged& batch, int64_t gap = 8, int64_t bound = 0) const {
    const DeviceArray x_memory(dtype, x, row(), row() + gap), dt_memory(dtype, dt, shape.heads, shape.heads + gap),
        B_memory(dtype, B, bc(), bc() + gap), C_memory(dtype, C, bc(), bc() + gap),
        out(dtype, tokens, row(), row() + gap),
        A_memory(DType::kF32, A, shape.heads), D_memory(DType::kF32, D.empty() ? A : D, shape.heads),
        bias_memory(DType::kF32, dt_bias.empty() ? A : dt_bias, shape.heads),
        state_memory(state_type, states, state_floats(), state_floats() + gap);
    ssd_step({dtype, x_memory.data(), x_memory.ld(), dt_memory.data(), dt_memory.ld(), A_memory.floats(),
              B_memory.data(), C_memory.data(), B_memory.ld(), D.empty() ? nullptr : D_memory.floats(),
              dt_bias.empty() ? nullptr : bias_memory.floats(), softplus, 0.01f, dt_max, batch.segments(bound),
              shape.heads, shape.headdim, shape.d_state, shape.n_groups, state_memory.data(), state_memory.ld(),
              out.data(), out.ld(), {}, state_type},
             nullptr);
    return {out.read(), state_memory.read()};
  }

  Outputs expected(const Ragged& batch) const {
    Outputs result = {std::vector<float>(x.size()), states};
    for (const Segment& s : batch.items) {
      m4j::reference::ssd_step(
          {&x[s.row * row()], row(), &dt[s.row * shape.heads], shape.heads, A.data(), &B[s.row * bc()],
           &C[s.row * bc()], bc(), D.empty() ? nullptr : D.data(),
           dt_bias.empty() ? nullptr : dt_bias.data(), softplus, 0.01f, dt_max,
           s.tokens, shape.heads, shape.headdim, shape.d_state, shape.n_groups, 1,
           &result.state[s.slot * state_floats()], &result.out[s.row * row()], row()},
          {0, 1, nullptr, 0});
    }
    return result;
  }

  void expect_correct(const Ragged& batch, int64_t gap = 8) const {
    const Outputs actual = run(batch, gap), exact = expected(batch);
    expect_close(actual.out, exact.out, tolerance_of(dtype));
    expect_close(actual.state, exact.state, 1e-5);
    expect_same_bits(run(batch, gap), actual);
  }
};

class CudaSsdStep : public ::testing::Test {
 protected:
  Random random{m4j::test::run_seed()};
};

TEST_F(CudaSsdStep, RaggedBatchesOfAnySize) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1, 5, 1, 33, 2}, std::vector<int64_t>(17, 1)}) {
    const Ragged batch(lengths, random);
    for (const Shape& s : {Shape{1, 1, 1, 1}, Shape{3, 5, 7, 3}, Shape{4, 64, 128, 1}, Shape{6, 64, 128, 2},
                           Shape{2, 37, 64, 1}, Shape{3, 20, 33, 1}, Shape{2, 64, 16, 1}, Shape{2, 33, 256, 1},
                           Shape{2, 17, 300, 1}, Shape{2, 6, 259, 2}}) {
      for (DType dtype : kDTypes) {
        SCOPED_TRACE(name_of(dtype) + ", H " + std::to_string(s.heads) + ", P " + std::to_string(s.headdim) + ", N " +
                     std::to_string(s.d_state) + ", G " + std::to_string(s.n_groups));
        Problem(random, dtype, batch, s).expect_correct(batch);
      }
    }
  }
}

// Outputs of one token are those of float32 states; each token rounds the state once.
TEST_F(CudaSsdStep, Bfloat16States) {
  const Ragged batch(std::vector<int64_t>(19, 1), random), longer({1, 4, 2, 33}, random);
  for (const Shape& s : {Shape{3, 5, 7, 3}, Shape{4, 64, 128, 1}, Shape{6, 37, 128, 2}, Shape{2, 37, 64, 1},
                         Shape{3, 20, 33, 1}, Shape{2, 64, 16, 1}, Shape{2, 33, 256, 1}, Shape{60, 64, 128, 1},
                         Shape{3, 20, 24, 1}}) {
    for (DType dtype : kDTypes) {
      for (int64_t gap : {8, 1}) {
        SCOPED_TRACE(name_of(dtype) + ", H " + std::to_string(s.heads) + ", P " + std::to_string(s.headdim) + ", N " +
                     std::to_string(s.d_state) + ", G " + std::to_string(s.n_groups) + ", gap " + std::to_string(gap));
        const Problem p = with_bfloat16_states(Problem(random, dtype, batch, s));
        const Outputs actual = p.run(batch, gap), exact = p.expected(batch);
        expect_close(actual.out, exact.out, tolerance_of(dtype));
        expect_close(actual.state, exact.state, kRoundedStates);
        expect_same_bits(p.run(batch, gap), actual);
        const Problem q = with_bfloat16_states(Problem(random, dtype, longer, s));
        const Outputs several = q.run(longer, gap), several_exact = q.expected(longer);
        const double remembered = kRoundedStates * std::sqrt(33.0);  // of as many roundings
        expect_close(several.out, several_exact.out, remembered + tolerance_of(dtype));
        expect_close(several.state, several_exact.state, remembered);
      }
    }
  }
}

TEST_F(CudaSsdStep, Bfloat16StatesAreTheSameInAnyBatch) {
  const int64_t count = 70;
  const Ragged batch(std::vector<int64_t>(count, 1), random);
  const Shape s = {16, 64, 128, 1};
  const Problem problem = with_bfloat16_states(Problem(random, DType::kBF16, batch, s));
  const Outputs together = problem.run(batch);
  for (const int64_t i : {int64_t{0}, int64_t{31}, count - 1}) {
    Problem p = problem;
    p.tokens = 1;
    p.slots = 1;
    p.x = part_of(problem.x, problem.row(), i);
    p.dt = part_of(problem.dt, s.heads, i);
    p.B = part_of(problem.B, problem.bc(), i);
    p.C = part_of(problem.C, problem.bc(), i);
    const int64_t slot = batch.items[static_cast<size_t>(i)].slot;
    p.states = part_of(problem.states, problem.state_floats(), slot);
    const Outputs alone = p.run(Ragged({{0, 1, 0}}, 1));
    expect_same_bits(alone.out, part_of(together.out, problem.row(), i));
    expect_same_bits(alone.state, part_of(together.state, problem.state_floats(), slot));
  }
}

// Decays by less than half a unit in the last place, which rounding to nearest would undo every time; NaN stays NaN.
TEST_F(CudaSsdStep, Bfloat16StatesDecaySlowly) {
  const int64_t tokens = 1000;
  const Ragged batch({{0, tokens, 0}}, 1);
  Problem p = with_bfloat16_states(Problem(random, DType::kF32, batch, {4, 64, 128, 1}));
  p.softplus = false;
  p.A.assign(4, -0.05f);
  p.dt = random.uniform(tokens * 4, 0.011f, 0.029f);
  p.dt_bias.assign(4, 0);
  p.x.assign(p.x.size(), 0);
  p.states[5] = std::numeric_limits<float>::quiet_NaN();
  Outputs actual = p.run(batch), exact = p.expected(batch);
  EXPECT_TRUE(std::isnan(actual.state[5]));
  double sum = 0, exact_sum = 0;
  for (size_t i = 0; i < exact.state.size(); ++i) {
    if (i == 5) continue;
    sum += std::fabs(actual.state[i]);
    exact_sum += std::fabs(exact.state[i]);
  }
  // Rounded to nearest it would be e. Equal numbers of a head are rounded alike, so that few walks are independent: the
  // standard deviation is about 0.005.
  EXPECT_NEAR(sum / exact_sum, 1, 0.05);
}

TEST_F(CudaSsdStep, ManySegments) {
  const Ragged batch(std::vector<int64_t>(150, 1), random);
  for (DType dtype : kDTypes) Problem(random, dtype, batch, {8, 64, 128, 1}).expect_correct(batch);
}

TEST_F(CudaSsdStep, OptionsAlignmentAndBounds) {
  const Ragged batch({1, 9, 2}, random);
  for (int bits = 0; bits < 8; ++bits) {
    SCOPED_TRACE("options " + std::to_string(bits));
    Problem problem(random, DType::kF32, batch, {3, 16, 128, 1}, (bits & 1) != 0, (bits & 2) != 0);
    problem.softplus = (bits & 4) != 0;
    problem.dt_max = 0.5f;
    problem.expect_correct(batch);
    problem.expect_correct(batch, 1);
    expect_same_bits(problem.run(batch, 8, 100), problem.run(batch));
  }
}

TEST_F(CudaSsdStep, PartsEqualTheWhole) {
  const int64_t tokens = 41;
  const Shape s = {3, 20, 128, 1};
  const Ragged whole_batch({{0, tokens, 0}}, 1);
  const Problem problem(random, DType::kF32, whole_batch, s);
  const Outputs whole = problem.run(whole_batch);
  for (int64_t length : {1, 2, 7, 40}) {
    SCOPED_TRACE("parts of " + std::to_string(length));
    Outputs parts = {{}, problem.states};
    for (int64_t t = 0; t < tokens; t += length) {
      const int64_t end = std::min(t + length, tokens);
      Problem p = problem;
      p.tokens = end - t;
      p.x = slice_rows(problem.x, problem.row(), t, end);
      p.dt = slice_rows(problem.dt, s.heads, t, end);
      p.B = slice_rows(problem.B, problem.bc(), t, end);
      p.C = slice_rows(problem.C, problem.bc(), t, end);
      p.states = parts.state;
      const Outputs part = p.run(Ragged({{0, end - t, 0}}, 1));
      append(parts.out, part.out);
      parts.state = part.state;
    }
    expect_same_bits(parts, whole);
  }
}

TEST_F(CudaSsdStep, OffsetsBeyond32Bits) {
  const int64_t far = (int64_t{1} << 30) + 8, stride = (int64_t{1} << 31) + 4;
  const Shape s = {2, 16, 32, 1};
  const Ragged batch({{0, 3, 1}}, 2);
  const Problem problem(random, DType::kBF16, batch, s);
  const int64_t state = problem.state_floats();
  const FarMemory rows(DType::kBF16, 2 * far + 1000), states(DType::kF32, stride + state);
  for (int64_t t = 0; t < 3; ++t) {
    rows.write(t * far, part_of(problem.x, 32, t));
    rows.write(t * far + 100, part_of(problem.dt, 2, t));
    rows.write(t * far + 200, part_of(problem.B, 32, t));
    rows.write(t * far + 300, part_of(problem.C, 32, t));
  }
  states.write(stride, part_of(problem.states, state, 1));
  const DeviceArray A(DType::kF32, problem.A, 2), D(DType::kF32, problem.D, 2), bias(DType::kF32, problem.dt_bias, 2);
  ssd_step({DType::kBF16, rows.at(0), far, rows.at(100), far, A.floats(), rows.at(200), rows.at(300), far, D.floats(),
            bias.floats(), true, 0.01f, problem.dt_max, batch.segments(), 2, 16, 32, 1,
            static_cast<float*>(states.at(0)), stride, rows.at(400), far, {}},
           nullptr);
  const Outputs exact = problem.expected(batch);
  expect_close(rows.read(2 * far + 400, 32), part_of(exact.out, 32, 2), tolerance_of(DType::kBF16));
  expect_close(states.read(stride, state), part_of(exact.state, state, 1), 1e-5);
}

}  // namespace
}  // namespace m4j::cuda::test
