#include "ops/cuda/dt_scan_step.h"

#include <cmath>

#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

constexpr int64_t kStates = 16;

struct Problem {
  DType dtype;
  int64_t tokens, slots, d_inner, dt_rank;
  std::vector<float> u, dt, B, C, z, dt_proj, dt_bias, A, D, states;  // states: [S, N, E]
  DType state_type = DType::kF32;

  Problem(Random& random, DType dtype, const Ragged& batch, int64_t d_inner, int64_t dt_rank)
      : dtype(dtype), tokens(batch.tokens), slots(batch.slots), d_inner(d_inner), dt_rank(dt_rank),
        u(rounded(random.normal(tokens * d_inner), dtype)), dt(rounded(random.normal(tokens * dt_rank), dtype)),
        B(rounded(random.normal(tokens * kStates), dtype)), C(rounded(random.normal(tokens * kStates), dtype)),
        z(rounded(random.normal(tokens * d_inner, 2), dtype)),
        dt_proj(rounded(random.normal(d_inner * dt_rank, 1 / std::sqrt(static_cast<float>(dt_rank))), dtype)),
        dt_bias(random.uniform(d_inner, -4, 1)), A(random.uniform(kStates * d_inner, -4, -0.01f)),
        D(random.normal(d_inner)), states(random.normal(slots * kStates * d_inner)) {}

  int64_t state_floats() const { return kStates * d_inner; }

  // Rows are `gap` elements further apart than they are long.
  Outputs run(const Ragged& batch, bool in_place = false, int64_t gap = 8) const {
    const int64_t ld = d_inner + gap, ld_dbc = (dt_rank + 7) / 8 * 8 + gap;
    const DeviceArray u_memory(dtype, u, d_inner, ld), dt_memory(dtype, dt, dt_rank, ld_dbc),
        B_memory(dtype, B, kStates, ld_dbc), C_memory(dtype, C, kStates, ld_dbc), z_memory(dtype, z, d_inner, ld),
        out_memory(dtype, tokens, d_inner, ld), weight(dtype, dt_proj, dt_rank), bias(DType::kF32, dt_bias, 1),
        A_memory(DType::kF32, A, d_inner), D_memory(DType::kF32, D, 1),
        state_memory(state_type, states, state_floats(), state_floats() + gap);
    const DeviceArray& out = in_place ? u_memory : out_memory;
    const SelectiveScanArgs scan = {dtype, u_memory.data(), ld, nullptr, 0, A_memory.floats(), B_memory.data(),
                                    C_memory.data(), ld_dbc, D_memory.floats(), z_memory.data(), ld, bias.floats(), true,
                                    batch.segments(), d_inner, kStates, 1, state_memory.data(), state_memory.ld(),
                                    out.data(), ld, {}, state_type};
    EXPECT_TRUE(dt_scan_step({scan, dt_memory.data(), {dtype, weight.data(), nullptr, d_inner, dt_rank}}, nullptr));
    must(cudaDeviceSynchronize());
    return {out.read(), state_memory.read()};
  }

  Outputs expected(const Ragged& batch) const {
    Outputs result = {std::vector<float>(u.size()), states};
    std::vector<float> delta(u.size());
    m4j::reference::linear({dt.data(), dt_rank, dt_proj.data(), DType::kF32, dt_rank, nullptr, tokens, dt_rank, d_inner,
                            delta.data(), d_inner},
                           {0, 1, nullptr, 0});
    for (const Segment& s : batch.items) {
      const int64_t at = s.row * d_inner;
      m4j::reference::selective_scan(
          {&u[at], d_inner, &delta[at], d_inner, A.data(), &B[s.row * kStates], &C[s.row * kStates], kStates, D.data(),
           &z[at], d_inner, dt_bias.data(), true, 1, d_inner, kStates, 1, &result.state[s.slot * state_floats()],
           &result.out[at], d_inner},
          {0, 1, nullptr, 0});
    }
    return result;
  }
};

class CudaDtScanStep : public ::testing::Test {
 protected:
  Random random{m4j::test::run_seed()};
};

// Batches of every division among blocks, each sequence as it is alone.
TEST_F(CudaDtScanStep, AnyNumberOfSequencesAndAnySize) {
  struct Shape {
    int64_t d_inner, dt_rank;
  };
  for (const Shape& shape : {Shape{64, 8}, {128, 24}, {1536, 48}, {448, 64}, {320, 160}, {192, 176}, {256, 256}, {5120, 8},
                             {5120, 160}}) {
    for (int64_t count : {1, 3, 8, 9, 31, 64, 65, 130, 256}) {
      if (shape.d_inner * shape.dt_rank * count > 20'000'000) continue;  // the reference takes long
      const Ragged batch(std::vector<int64_t>(static_cast<size_t>(count), 1), random);
      for (DType dtype : {DType::kF16, DType::kBF16}) {
        for (bool narrow : {false, true}) {
          if (random.left_out()) continue;
          SCOPED_TRACE(name_of(dtype) + ", E " + std::to_string(shape.d_inner) + ", R " + std::to_string(shape.dt_rank) +
                       ", T " + std::to_string(count) + (narrow ? ", bf16 states" : ""));
          const Problem wide(random, dtype, batch, shape.d_inner, shape.dt_rank);
          const Problem problem = narrow ? with_bfloat16_states(wide) : wide;
          const Outputs actual = problem.run(batch), exact = problem.expected(batch);
          expect_close(actual.out, exact.out, tolerance_of(dtype));
          expect_close(actual.state, exact.state, narrow ? kRoundedStates : 1e-5);
          expect_same_bits(problem.run(batch, true, 16), actual);
          const int64_t i = random.ids(1, count)[0], slot = batch.items[static_cast<size_t>(i)].slot;
          Problem alone = problem;
          alone.tokens = alone.slots = 1;
          for (auto v : {&Problem::u, &Problem::z}) alone.*v = part_of(problem.*v, problem.d_inner, i);
          for (auto v : {&Problem::B, &Problem::C}) alone.*v = part_of(problem.*v, kStates, i);
          alone.dt = part_of(problem.dt, problem.dt_rank, i);
          alone.states = part_of(problem.states, problem.state_floats(), slot);
          const Outputs solo = alone.run(Ragged({{0, 1, 0}}, 1));
          expect_same_bits(solo.out, part_of(actual.out, problem.d_inner, i));
          expect_same_bits(solo.state, part_of(actual.state, problem.state_floats(), slot));
        }
      }
    }
  }
}

TEST_F(CudaDtScanStep, OffsetsBeyond32Bits) {
  const int64_t far = (int64_t{1} << 31) + 8, stride = (int64_t{1} << 31) + 8, E = 64, R = 16, N = kStates;
  const Ragged batch({{0, 1, 1}, {1, 1, 0}}, 2);
  const Problem problem(random, DType::kBF16, batch, E, R);
  const FarMemory rows(DType::kBF16, far + 600), states(DType::kF32, stride + N * E);
  for (int64_t t = 0; t < 2; ++t) {
    rows.write(t * far, part_of(problem.u, E, t));
    rows.write(t * far + 104, part_of(problem.dt, R, t));
    rows.write(t * far + 200, part_of(problem.z, E, t));
    rows.write(t * far + 304, part_of(problem.B, N, t));
    rows.write(t * far + 400, part_of(problem.C, N, t));
    states.write(t * stride, part_of(problem.states, N * E, t));
  }
  const DeviceArray weight(DType::kBF16, problem.dt_proj, R), bias(DType::kF32, problem.dt_bias, 1),
      A(DType::kF32, problem.A, E), D(DType::kF32, problem.D, 1);
  const SelectiveScanArgs scan = {DType::kBF16, rows.at(0), far, nullptr, 0, A.floats(), rows.at(304), rows.at(400), far,
                                  D.floats(), rows.at(200), far, bias.floats(), true, batch.segments(), E, N, 1,
                                  states.at(0), stride, rows.at(500), far, {}};
  ASSERT_TRUE(dt_scan_step({scan, rows.at(104), {DType::kBF16, weight.data(), nullptr, E, R}}, nullptr));
  const Outputs exact = problem.expected(batch);
  for (int64_t t = 0; t < 2; ++t) {
    expect_close(rows.read(t * far + 500, E), part_of(exact.out, E, t), tolerance_of(DType::kBF16));
    expect_close(states.read(t * stride, N * E), part_of(exact.state, N * E, t), 1e-5);
  }
}

}  // namespace
}  // namespace m4j::cuda::test
