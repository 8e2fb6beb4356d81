#include <cmath>
#include <tuple>

#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

struct Options {
  bool D = true, z = true, delta_bias = true, softplus = true;
};

enum class Target { kSeparate, kOverU, kOverZ };

struct Problem {
  DType dtype;
  int64_t tokens, slots, d_inner, d_state, n_groups;
  bool softplus;
  std::vector<float> u, delta, A, B, C, D, z, delta_bias;
  std::vector<float> states;  // [S, N, E]
  DType state_type = DType::kF32;
  double workspace_share = 1;  // of what it wants

  Problem(Random& random, DType dtype, const Ragged& batch, int64_t d_inner, int64_t d_state, int64_t n_groups,
          const Options& o = {})
      : dtype(dtype), tokens(batch.tokens), slots(batch.slots), d_inner(d_inner), d_state(d_state), n_groups(n_groups),
        softplus(o.softplus), u(rounded(random.normal(tokens * d_inner), dtype)),
        delta(rounded(o.softplus ? random.normal(tokens * d_inner, 2) : random.uniform(tokens * d_inner, 0.001f, 1),
                      dtype)),
        A(random.uniform(d_state * d_inner, -4, -0.01f)),
        B(rounded(random.normal(tokens * bc_cols()), dtype)), C(rounded(random.normal(tokens * bc_cols()), dtype)),
        D(random.normal(d_inner, 1, o.D)), z(rounded(random.normal(tokens * d_inner, 2, o.z), dtype)),
        delta_bias(random.uniform(d_inner, -2, 1, o.delta_bias && o.softplus)),
        states(random.normal(slots * d_state * d_inner)) {}

  int64_t bc_cols() const { return n_groups * d_state; }
  int64_t state_floats() const { return d_state * d_inner; }

  // Row strides that keep rows at multiples of 16 bytes, `gap` more than the least; tight rows for gap -1.
  int64_t ld(int64_t cols, int64_t gap) const { return gap < 0 ? cols : (cols + 7) / 8 * 8 + 8 * gap; }

  // So many launches in a row, each from the states that the one before left.
  Outputs run(const Ragged& batch, int64_t gap = 1, Target target = Target::kSeparate, int64_t bound = 0,
              int launches = 1) const {
    const int64_t row_ld = ld(d_inner, gap), bc_ld = ld(bc_cols(), gap), slot_stride = ld(state_floats(), gap);
    const auto optional = [](const std::vector<float>& v) {
      return DeviceArray(DType::kF32, v.empty() ? std::vector<float>{0} : v, v.empty() ? 1 : v.size());
    };
    const DeviceArray u_memory(dtype, u, d_inner, row_ld), delta_memory(dtype, delta, d_inner, row_ld),
        z_memory(dtype, z.empty() ? u : z, d_inner, row_ld), B_memory(dtype, B, bc_cols(), bc_ld),
        C_memory(dtype, C, bc_cols(), bc_ld), out_memory(dtype, tokens, d_inner, row_ld),
        A_memory(DType::kF32, A, d_inner), D_memory = optional(D), bias_memory = optional(delta_bias),
        state_memory(state_type, states, state_floats(), slot_stride);
    const Segments segments = batch.segments(bound);
    const auto wanted = static_cast<double>(selective_scan_workspace(d_inner, d_state, n_groups, segments));
    const auto bytes = static_cast<int64_t>(workspace_share * wanted);
    const DeviceArray workspace(DType::kF32, 1, (bytes + 3) / 4);
    const DeviceArray& out = target == Target::kOverU ? u_memory : target == Target::kOverZ ? z_memory : out_memory;
    for (int i = 0; i < launches; ++i) {
      selective_scan({dtype, u_memory.data(), row_ld, delta_memory.data(), row_ld, A_memory.floats(), B_memory.data(),
                      C_memory.data(), bc_ld, D.empty() ? nullptr : D_memory.floats(),
                      z.empty() ? nullptr : z_memory.data(), row_ld,
                      delta_bias.empty() ? nullptr : bias_memory.floats(), softplus, segments, d_inner, d_state,
                      n_groups, state_memory.data(), slot_stride, out.data(), row_ld, {workspace.data(), bytes},
                      state_type},
                     nullptr);
    }
    must(cudaDeviceSynchronize());
    workspace.read();
    return {out.read(), state_memory.read()};
  }

  Outputs expected(const Ragged& batch) const {
    Outputs result = {std::vector<float>(u.size()), states};
    for (const Segment& s : batch.items) {
      const int64_t at = s.row * d_inner, bc_at = s.row * bc_cols();
      m4j::reference::selective_scan(
          {&u[at], d_inner, &delta[at], d_inner, A.data(), &B[bc_at], &C[bc_at],
          bc_cols(),
           D.empty() ? nullptr : D.data(), z.empty() ? nullptr : &z[at], d_inner,
           delta_bias.empty() ? nullptr : delta_bias.data(), softplus, s.tokens,
           d_inner, d_state, n_groups, &result.state[s.slot * state_floats()], &result.out[at], d_inner},
          {0, 1, nullptr, 0});
    }
    return result;
  }

  void expect_correct(const Ragged& batch) const {
    const Outputs actual = run(batch), exact = expected(batch);
    expect_close(actual.out, exact.out, tolerance_of(dtype));
    expect_close(actual.state, exact.state, 1e-5);
    expect_same_bits(run(batch), actual);
  }
};

class CudaSelectiveScan : public ::testing::Test {
 protected:
  Random random{m4j::test::run_seed()};
};

TEST_F(CudaSelectiveScan, RaggedBatchesOfAnySize) {
  struct Shape {
    int64_t d_inner, d_state, n_groups;
  };
  const Ragged batch({1, 37, 2, 1, 301, 16, 17, 5, 33}, random);
  for (const Shape& s : {Shape{1, 1, 1}, Shape{207, 16, 1}, Shape{130, 16, 1}, Shape{128, 16, 1},
                         Shape{128, 16, 2}, Shape{31, 7, 1}, Shape{64, 16, 4},
                         Shape{69, 13, 3}, Shape{66, 20, 2}, Shape{130, 33, 2}, Shape{36, 64, 1}, Shape{22, 128, 1},
                         Shape{18, 130, 2}, Shape{20, 256, 1}}) {
    for (DType dtype : kDTypes) {
      SCOPED_TRACE(name_of(dtype) + ", E " + std::to_string(s.d_inner) + ", N " + std::to_string(s.d_state) + ", G " +
                   std::to_string(s.n_groups));
      Problem(random, dtype, batch, s.d_inner, s.d_state, s.n_groups).expect_correct(batch);
    }
  }
}

// Enough blocks for a walk without chunks, too few to keep the GPU busy with the usual number of channels each.
TEST_F(CudaSelectiveScan, ManyShortSegments) {
  for (int64_t count : {70, 110, 150}) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < count; ++i) lengths.push_back(random.ids(1, 70)[0] + 1);
    const Ragged batch(lengths, random);
    for (const auto& [d_inner, d_state, n_groups] :
         {std::tuple<int64_t, int64_t, int64_t>{74, 16, 1}, {128, 16, 1}, {130, 7, 1}, {69, 13, 3}}) {
      for (DType dtype : kDTypes) {
        if (random.left_out()) continue;
        SCOPED_TRACE(std::to_string(count) + " segments, " + name_of(dtype) + ", E " + std::to_string(d_inner) +
                     ", N " + std::to_string(d_state));
        Problem(random, dtype, batch, d_inner, d_state, n_groups).expect_correct(batch);
      }
    }
  }
}

TEST_F(CudaSelectiveScan, OneTokenOfEachSegment) {
  const Ragged batch(std::vector<int64_t>(19, 1), random);
  for (int64_t d_state : {1, 7, 16, 20, 64, 256}) {
    for (DType dtype : kDTypes) {
      SCOPED_TRACE(name_of(dtype) + ", N " + std::to_string(d_state));
      Problem(random, dtype, batch, 69, d_state, 3).expect_correct(batch);
      Problem(random, dtype, batch, 256, d_state, 1).expect_correct(batch);
    }
  }
}

// A thread takes some of many sequences, and gives what it gives to one alone.
TEST_F(CudaSelectiveScan, OneTokenOfManySegments) {
  const int64_t count = 150, d_inner = 1024;
  const Ragged batch(std::vector<int64_t>(count, 1), random);
  for (const auto& [d_state, n_groups] : {std::pair<int64_t, int64_t>{16, 1}, {16, 2}, {20, 1}}) {
    for (DType dtype : kDTypes) {
      for (bool narrow : {false, true}) {
        SCOPED_TRACE(name_of(dtype) + ", N " + std::to_string(d_state) + ", G " + std::to_string(n_groups) +
                     (narrow ? ", bf16 states" : ""));
        const Problem wide(random, dtype, batch, d_inner, d_state, n_groups);
        const Problem problem = narrow ? with_bfloat16_states(wide) : wide;
        const Outputs actual = problem.run(batch), exact = problem.expected(batch);
        expect_close(actual.out, exact.out, tolerance_of(dtype));
        expect_close(actual.state, exact.state, narrow ? kRoundedStates : 1e-5);
        const int64_t i = random.ids(1, count)[0], slot = batch.items[static_cast<size_t>(i)].slot;
        Problem alone = problem;
        alone.tokens = alone.slots = 1;
        for (auto v : {&Problem::u, &Problem::delta, &Problem::z}) alone.*v = part_of(problem.*v, d_inner, i);
        for (auto v : {&Problem::B, &Problem::C}) alone.*v = part_of(problem.*v, problem.bc_cols(), i);
        alone.states = part_of(problem.states, problem.state_floats(), slot);
        const Outputs solo = alone.run(Ragged({{0, 1, 0}}, 1));
        expect_same_bits(solo.out, part_of(actual.out, d_inner, i));
        expect_same_bits(solo.state, part_of(actual.state, problem.state_floats(), slot));
      }
    }
  }
}

// Outputs are those of float32 states; states are rounded once, in chunks too.
TEST_F(CudaSelectiveScan, Bfloat16States) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>(19, 1), {1, 37, 2, 301, 16, 5}, {3000, 129}}) {
    const Ragged batch(lengths, random);
    for (int64_t d_state : {1, 7, 16, 20, 64, 256}) {
      for (DType dtype : kDTypes) {
        for (const auto& [d_inner, n_groups] : {std::pair<int64_t, int64_t>{69, 3}, {256, 1}}) {
          if (random.left_out()) continue;
          SCOPED_TRACE(name_of(dtype) + ", N " + std::to_string(d_state) + ", E " + std::to_string(d_inner));
          const Problem p = with_bfloat16_states(Problem(random, dtype, batch, d_inner, d_state, n_groups));
          const Outputs actual = p.run(batch), exact = p.expected(batch);
          expect_close(actual.out, exact.out, tolerance_of(dtype));
          expect_close(actual.state, exact.state, kRoundedStates);
          expect_same_bits(p.run(batch), actual);
          Problem wide = p;
          wide.state_type = DType::kF32;
          expect_same_bits(wide.run(batch).out, actual.out);
        }
      }
    }
  }
}

TEST_F(CudaSelectiveScan, EveryCombinationOfOptions) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1, 1}, std::vector<int64_t>{7, 1, 700}}) {
    const Ragged batch(lengths, random);
    for (int bits = 0; bits < 16; ++bits) {
      SCOPED_TRACE("options " + std::to_string(bits));
      const Options options = {(bits & 1) != 0, (bits & 2) != 0, (bits & 4) != 0, (bits & 8) != 0};
      Problem(random, DType::kF32, batch, 37, 5, 1, options).expect_correct(batch);
    }
  }
}

// Few channels, many tokens: chunks. Some forget early, others never.
TEST_F(CudaSelectiveScan, LongSequencesInChunks) {
  const Ragged batch({3000, 1, 128, 129, 5011, 300}, random);
  for (const auto& [d_inner, d_state, dtype] :
       {std::tuple<int64_t, int64_t, DType>{74, 3, DType::kF32}, {74, 16, DType::kF32}, {74, 24, DType::kF32},
        {74, 40, DType::kF32}, {128, 16, DType::kF32}, {128, 16, DType::kBF16}}) {
    for (float slowest : {-0.01f, -1e-4f, 0.0f}) {
      if (random.left_out()) continue;
      SCOPED_TRACE(name_of(dtype) + ", E " + std::to_string(d_inner) + ", N " + std::to_string(d_state) + ", A up to " +
                   std::to_string(slowest));
      Problem problem(random, dtype, batch, d_inner, d_state, 1);
      for (size_t i = 0; i < problem.A.size(); ++i) {
        problem.A[i] = i % static_cast<size_t>(d_inner) % 5 == 0 ? slowest : problem.A[i] * 3;
      }
      problem.delta_bias.assign(static_cast<size_t>(d_inner), slowest == 0 ? -9.0f : -5.0f);
      ASSERT_GT(selective_scan_workspace(d_inner, d_state, 1, batch.segments()), 0);
      problem.expect_correct(batch);
    }
  }
}

// As many blocks as run at a time and more: chunks take turns. Most sequences end in the first.
TEST_F(CudaSelectiveScan, ChunksInTurn) {
  int processors = 0;
  must(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, 0));
  struct Shape {
    int64_t d_inner, d_state, n_groups;
    double blocks;  // of a multiprocessor
  };
  for (const Shape& s : {Shape{64, 16, 1, 4.3}, Shape{64, 16, 1, 2.4}, Shape{61, 16, 1, 4.3}, Shape{50, 11, 1, 2.4},
                         Shape{192, 16, 3, 4.3}, Shape{66, 16, 3, 4.3}, Shape{30, 20, 1, 4.3}, Shape{15, 40, 1, 3.3},
                         Shape{8, 100, 1, 3.3}, Shape{8, 130, 1, 2.2}}) {
    for (DType dtype : kDTypes) {
      if (random.left_out()) continue;
      SCOPED_TRACE(name_of(dtype) + ", E " + std::to_string(s.d_inner) + ", N " + std::to_string(s.d_state) + ", " +
                   std::to_string(s.blocks) + " blocks");
      std::vector<int64_t> lengths = {1025, 512, 600, 256, 257, 272, 273};
      while (static_cast<double>(lengths.size()) < s.blocks * processors / static_cast<double>(s.n_groups)) {
        lengths.push_back(random.ids(1, 9)[0] + 1);
      }
      const Ragged batch(lengths, random);
      const Problem problem(random, dtype, batch, s.d_inner, s.d_state, s.n_groups);
      ASSERT_GT(selective_scan_workspace(s.d_inner, s.d_state, s.n_groups, batch.segments()), 0);
      problem.expect_correct(batch);
      const Outputs actual = problem.run(batch);
      for (double share : {0.0, 0.999}) {  // in one walk
        Problem without = problem;
        without.workspace_share = share;
        expect_same_bits(without.run(batch), actual);
      }
      expect_same_bits(problem.run(batch, 1, Target::kOverU), actual);
      expect_same_bits(problem.run(batch, 1, Target::kOverZ), actual);
      Problem next = problem;
      next.states = actual.state;
      expect_same_bits(problem.run(batch, 1, Target::kSeparate, 0, 2), next.run(batch));
      const Problem narrow = with_bfloat16_states(problem);
      Problem wide = narrow;
      wide.state_type = DType::kF32;
      const Outputs narrowed = narrow.run(batch), widened = wide.run(batch);
      expect_same_bits(narrowed.out, widened.out);
      expect_close(narrowed.state, widened.state, kRoundedStates);
    }
  }
}

// A pass lays out its memory for one long sequence, and several shorter ones may want more.
TEST_F(CudaSelectiveScan, LessWorkspaceThanItWants) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{5011}, {3000, 1, 128, 700}}) {
    const Ragged batch(lengths, random);
    for (double share : {0.0, 0.1, 0.5, 0.9}) {
      Problem problem(random, DType::kF32, batch, 74, 16, 1);
      problem.workspace_share = share;
      ASSERT_GT(selective_scan_workspace(74, 16, 1, batch.segments()), 0);
      problem.expect_correct(batch);
    }
  }
}

TEST_F(CudaSelectiveScan, InPlaceGivesTheSameBits) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1, 1, 1}, std::vector<int64_t>{13, 1, 900}}) {
    const Ragged batch(lengths, random);
    for (DType dtype : kDTypes) {
      const Problem problem(random, dtype, batch, 74, 16, 1);
      const Outputs separate = problem.run(batch);
      expect_same_bits(problem.run(batch, 1, Target::kOverU), separate);
      expect_same_bits(problem.run(batch, 1, Target::kOverZ), separate);
    }
  }
}

TEST_F(CudaSelectiveScan, RowsWithoutAlignmentAndHigherBounds) {
  const Ragged batch({5, 1, 64, 31}, random);
  for (DType dtype : kDTypes) {
    const Problem problem(random, dtype, batch, 74, 16, 1);
    const Outputs padded = problem.run(batch);
    expect_close(problem.run(batch, -1), padded, 1e-5);
    expect_close(problem.run(batch, 0, Target::kSeparate, 5000), padded, tolerance_of(dtype));
  }
}

// Rows that are apart as those of aligned memory, but begin behind one element.
TEST_F(CudaSelectiveScan, RowsBeginAtAnyElement) {
  const int64_t N = 16;
  const auto behind_one = [](const std::vector<float>& rows, int64_t columns) {
    std::vector<float> result;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (i % static_cast<size_t>(columns) == 0) result.push_back(0);
      result.push_back(rows[i]);
    }
    return result;
  };
  for (const auto& [E, lengths] : {std::pair<int64_t, std::vector<int64_t>>{74, {5, 1, 64, 31}}, {128, {5, 1, 64, 31}},
                                   {74, {1, 1, 1}}, {128, {1, 1, 1}}}) {
    const Ragged batch(lengths, random);
    for (DType dtype : kDTypes) {
      SCOPED_TRACE(name_of(dtype) + ", E " + std::to_string(E) + ", " + std::to_string(lengths.size()) + " segments");
      const Problem problem(random, dtype, batch, E, N, 1);
      const DeviceArray u(dtype, behind_one(problem.u, E), E + 1, E + 2),
          delta(dtype, behind_one(problem.delta, E), E + 1, E + 2), z(dtype, behind_one(problem.z, E), E + 1, E + 2),
          B(dtype, behind_one(problem.B, N), N + 1, N + 4), C(dtype, behind_one(problem.C, N), N + 1, N + 4),
          A(DType::kF32, problem.A, E), D(DType::kF32, problem.D, E), bias(DType::kF32, problem.delta_bias, E),
          states(DType::kF32, problem.states, N * E);
      const auto second = [&](const DeviceArray& a) { return static_cast<char*>(a.data()) + dtype_bytes(dtype, 1); };
      selective_scan({dtype, second(u), E + 2, second(delta), E + 2, A.floats(), second(B), second(C), N + 4,
                      D.floats(), second(z), E + 2, bias.floats(), problem.softplus, batch.segments(), E, N, 1, states.data(), N * E,
                      second(u), E + 2, {}},
                     nullptr);
      must(cudaDeviceSynchronize());
      std::vector<float> out;
      const std::vector<float> rows = u.read();
      for (size_t i = 0; i < rows.size(); ++i) {
        if (i % static_cast<size_t>(E + 1) != 0) out.push_back(rows[i]);
      }
      expect_close({out, states.read()}, problem.run(batch), tolerance_of(dtype));
    }
  }
}

TEST_F(CudaSelectiveScan, PartsEqualTheWhole) {
  const int64_t tokens = 777;
  const Ragged whole_batch({{0, tokens, 1}}, 2);
  const Problem problem(random, DType::kF32, whole_batch, 74, 16, 1);
  const Outputs whole = problem.run(whole_batch);
  for (int64_t length : {1, 3, 16, 37, 300, 776}) {
    if (random.left_out()) continue;
    SCOPED_TRACE("parts of " + std::to_string(length));
    Outputs parts = {{}, problem.states};
    for (int64_t t = 0; t < tokens; t += length) {
      const int64_t end = std::min(t + length, tokens);
      Problem p = problem;
      p.tokens = end - t;
      for (auto v : {&Problem::u, &Problem::delta, &Problem::z}) p.*v = slice_rows(problem.*v, 74, t, end);
      for (auto v : {&Problem::B, &Problem::C}) p.*v = slice_rows(problem.*v, 16, t, end);
      p.states = parts.state;
      const Outputs part = p.run(Ragged({{0, end - t, 1}}, 2));
      append(parts.out, part.out);
      parts.state = part.state;
    }
    expect_close(parts, whole, 1e-5);
  }
}

TEST_F(CudaSelectiveScan, ExtremeInputs) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1, 1}, std::vector<int64_t>{31, 600}}) {
    const Ragged batch(lengths, random);
    const auto scan = [&](auto&& change) {
      Problem problem(random, DType::kF32, batch, 37, 5, 1);
      change(problem);
      problem.expect_correct(batch);
    };
    for (float a : {-1e6f, -1e3f, -60.0f, -1e-6f, 0.0f}) {
      SCOPED_TRACE("A " + std::to_string(a));
      scan([&](Problem& p) { p.A.assign(p.A.size(), a); });
    }
    for (float low : {-80.0f, -21.0f, -8.0f, 18.0f, 90.0f, 1e4f}) {
      SCOPED_TRACE("delta near " + std::to_string(low));
      scan([&](Problem& p) {
        p.delta = random.uniform(p.tokens * 37, low, low + 2);
        p.delta_bias.clear();
        p.D.clear();
        p.states.assign(p.states.size(), 0.0f);  // only then does the relative precision of a tiny delta show
      });
    }
    scan([&](Problem& p) {
      const float extremes[] = {100, -100, 88.5f, -88.5f, -1e4f, 1e4f, 0};
      for (size_t i = 0; i < p.z.size(); ++i) p.z[i] = extremes[i % std::size(extremes)];
    });
    for (DType dtype : kDTypes) {  // gates that are shut
      SCOPED_TRACE(name_of(dtype));
      Problem shut(random, dtype, batch, 37, 5, 1);
      for (size_t i = 0; i < shut.z.size(); ++i) shut.z[i] = i % 2 == 0 ? -104.0f : -1e4f;
      shut.z = rounded(shut.z, dtype);
      for (const float v : shut.run(batch).out) ASSERT_EQ(v, 0);
    }
  }
}

TEST_F(CudaSelectiveScan, OffsetsBeyond32Bits) {
  const int64_t far = (int64_t{1} << 30) + 8, E = 70, N = 16, stride = (int64_t{1} << 31) + 4;
  for (bool decode : {false, true}) {
    const Ragged batch = decode ? Ragged({{2, 1, 1}}, 2) : Ragged({{0, 3, 1}}, 2);
    const Ragged all({{0, 3, 1}}, 2);
    const Problem problem(random, DType::kBF16, all, E, N, 1);
    const FarMemory rows(DType::kBF16, 2 * far + 1000), states(DType::kF32, stride + N * E);
    for (int64_t t = 0; t < 3; ++t) {
      rows.write(t * far, part_of(problem.u, E, t));
      rows.write(t * far + 100, part_of(problem.delta, E, t));
      rows.write(t * far + 200, part_of(problem.z, E, t));
      rows.write(t * far + 300, part_of(problem.B, N, t));
      rows.write(t * far + 400, part_of(problem.C, N, t));
    }
    states.write(stride, part_of(problem.states, N * E, 1));
    const DeviceArray A(DType::kF32, problem.A, E), D(DType::kF32, problem.D, E),
        bias(DType::kF32, problem.delta_bias, E);
    selective_scan({DType::kBF16, rows.at(0), far, rows.at(100), far, A.floats(), rows.at(300), rows.at(400), far,
                    D.floats(), rows.at(200), far, bias.floats(), true, batch.segments(), E, N, 1,
                    static_cast<float*>(states.at(0)), stride, rows.at(500), far, {}},
                   nullptr);
    const Outputs exact = problem.expected(batch);
    expect_close(rows.read(2 * far + 500, E), part_of(exact.out, E, 2), tolerance_of(DType::kBF16));
    expect_close(states.read(stride, N * E), part_of(exact.state, N * E, 1), 1e-5);
  }
}

// Sequences in chunks, side by side and in turn: rows far apart give the bits that rows next to each other give.
TEST_F(CudaSelectiveScan, ChunksWithOffsetsBeyond32Bits) {
  constexpr int64_t E = 64, N = 16;
  std::vector<int64_t> in_turn(800, 4);
  in_turn[0] = 1025;
  in_turn[799] = 512;
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1500, 700}, in_turn}) {
    const Ragged batch(lengths, random);
    const Problem problem(random, DType::kBF16, batch, E, N, 1);
    const int64_t ld = (int64_t{1} << 31) / (batch.tokens - 1) / 8 * 8 + 8;
    const FarMemory rows(DType::kBF16, batch.tokens * ld);
    const auto spread = [&](int64_t column, const std::vector<float>& values, int64_t columns) {
      rows.write_rows(column, ld, values, columns);
      return rows.at(column);
    };
    const void *u = spread(0, problem.u, E), *delta = spread(E, problem.delta, E), *z = spread(2 * E, problem.z, E),
               *B = spread(3 * E, problem.B, N), *C = spread(3 * E + N, problem.C, N);
    void* out = rows.at(4 * E);
    const DeviceArray A(DType::kF32, problem.A, E), D(DType::kF32, problem.D, E),
        bias(DType::kF32, problem.delta_bias, E), states(DType::kF32, problem.states, N * E);
    const int64_t bytes = selective_scan_workspace(E, N, 1, batch.segments());
    ASSERT_GT(bytes, 0);
    const DeviceArray workspace(DType::kF32, 1, (bytes + 3) / 4);
    selective_scan({DType::kBF16, u, ld, delta, ld, A.floats(), B, C, ld, D.floats(), z, ld, bias.floats(), true,
                    batch.segments(), E, N, 1, states.data(), N * E, out, ld, {workspace.data(), bytes}},
                   nullptr);
    expect_same_bits({rows.read_rows(4 * E, ld, batch.tokens, E), states.read()}, problem.run(batch));
  }
}

}  // namespace
}  // namespace m4j::cuda::test
