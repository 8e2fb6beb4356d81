// ssd_chunk against the recurrence of the reference, on ragged batches.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "ops/cuda/chain.cuh"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

constexpr int64_t kSpareSlots = 2;

double tolerance(DType dtype) { return dtype == DType::kF32 ? 1e-5 : 1e-2; }

struct Shape {
  int64_t heads, headdim, d_state, n_groups;
};

struct Options {
  bool D = true, dt_bias = true, softplus = true;
  int64_t gap = 0;  // of ld over the row
};

// A batch of sequences; sequence i has lengths[i] tokens and continues slot slots[i].
struct Problem {
  DType dtype;
  Shape shape;
  std::vector<int64_t> lengths, slots;
  Options options;
  std::vector<float> x;           // [T, H, P]
  std::vector<float> dt;          // [T, H]
  std::vector<float> A;           // [H]
  std::vector<float> B, C;        // [T, G, N]
  std::vector<float> D, dt_bias;  // optional [H]
  std::vector<float> states;      // [S, H, P, N]
  float dt_min = 0, dt_max = std::numeric_limits<float>::infinity();
  DType state_type = DType::kF32;
  std::vector<float> z = {}, norm_weight = {};  // optional [T, H, P], [H, P]
  double workspace_share = 1;                   // of what it wants

  static Problem random(Random& random, DType dtype, const Shape& s, const std::vector<int64_t>& lengths,
                        const Options& options = {}) {
    const int64_t tokens = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    const int64_t bc = tokens * s.n_groups * s.d_state;
    std::vector<int64_t> slots;  // in no order
    for (size_t i = 0; i < lengths.size(); ++i) {
      slots.push_back(static_cast<int64_t>(lengths.size() - 1 - i) * 2 % 7 + 7 * static_cast<int64_t>(i / 7));
    }
    const int64_t slot_count = *std::max_element(slots.begin(), slots.end()) + 1 + kSpareSlots;
    const int64_t steps = tokens * s.heads;
    return {dtype, s, lengths, slots, options, rounded(random.normal(steps * s.headdim), dtype),
            rounded(options.softplus ? random.normal(steps) : random.uniform(steps, 0.001f, 1), dtype),
            random.uniform(s.heads, -4, -0.01f), rounded(random.normal(bc), dtype), rounded(random.normal(bc), dtype),
            random.normal(s.heads, 1, options.D), random.uniform(s.heads, -3, 1, options.dt_bias),
            random.normal(slot_count * s.heads * s.headdim * s.d_state)};
  }

  Problem gated(Random& random) const {
    Problem p = *this;
    p.z = rounded(random.normal(tokens() * x_cols(), 2), dtype);
    p.norm_weight = random.normal(x_cols());
    return p;
  }
  int64_t squares_cols() const { return ssd_chunk_squares(shape.heads, shape.headdim); }

  int64_t tokens() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }
  int64_t x_cols() const { return shape.heads * shape.headdim; }
  int64_t bc_cols() const { return shape.n_groups * shape.d_state; }
  int64_t state_size() const { return x_cols() * shape.d_state; }
  int64_t slot_count() const { return static_cast<int64_t>(states.size()) / state_size(); }

  // `squares` [T, squares_cols]; whether the kernel takes z must be as told.
  Outputs run(std::vector<float>* squares = nullptr, bool gates = true) const {
    const int64_t gap = options.gap;
    const DeviceArray x_memory(dtype, x, x_cols(), x_cols() + gap);
    const DeviceArray dt_memory(dtype, dt, shape.heads, shape.heads + gap);
    const DeviceArray B_memory(dtype, B, bc_cols(), bc_cols() + gap), C_memory(dtype, C, bc_cols(), bc_cols() + gap);
    const DeviceArray A_memory(DType::kF32, A, shape.heads);
    const DeviceArray D_memory(DType::kF32, D, shape.heads), bias_memory(DType::kF32, dt_bias, shape.heads);
    const DeviceArray states_memory(state_type, states, state_size(), state_size() + gap);
    const DeviceArray out(dtype, tokens(), x_cols(), x_cols() + gap);
    std::vector<Segment> items;
    int64_t row = 0;
    for (size_t i = 0; i < lengths.size(); ++i) {
      items.push_back({row, lengths[i], slots[i]});
      row += lengths[i];
    }
    const auto count = static_cast<int64_t>(items.size());
    const DeviceArray items_memory(DType::kF32, 1, count * static_cast<int64_t>(sizeof(Segment) / 4));
    must(cudaMemcpy(items_memory.data(), items.data(), items.size() * sizeof(Segment), cudaMemcpyHostToDevice));
    const Segments segments = {static_cast<const Segment*>(items_memory.data()), count, tokens(),
                               *std::max_element(lengths.begin(), lengths.end())};
    const int64_t wanted = ssd_chunk_workspace(shape.heads, shape.headdim, shape.d_state, shape.n_groups, segments);
    const auto bytes = static_cast<int64_t>(workspace_share * static_cast<double>(wanted));
    const DeviceArray workspace(DType::kF32, 1, (bytes + 3) / 4);
    SsdArgs args = {dtype, x_memory.data(), x_memory.ld(), dt_memory.data(), dt_memory.ld(), A_memory.floats(),
                    B_memory.data(), C_memory.data(), B_memory.ld(), D.empty() ? nullptr : D_memory.floats(),
                    dt_bias.empty() ? nullptr : bias_memory.floats(), options.softplus, dt_min, dt_max, segments,
                    shape.heads, shape.headdim, shape.d_state, shape.n_groups, states_memory.data(),
                    states_memory.ld(), out.data(), out.ld(), {workspace.data(), bytes}, state_type};
    const DeviceArray z_memory(dtype, z, x_cols(), x_cols() + 2 * gap);
    const DeviceArray weight_memory(DType::kF32, norm_weight, x_cols());
    const DeviceArray squares_memory(DType::kF32, tokens(), squares_cols());
    if (!z.empty()) {
      args.z = z_memory.data();
      args.ld_z = z_memory.ld();
      args.norm_weight = weight_memory.floats();
      args.squares = squares_memory.floats();
      EXPECT_EQ(ssd_chunk_gates(args), gates);
      if (!gates) return {};
    }
    ssd_chunk(args, nullptr);
    must(cudaDeviceSynchronize());
    workspace.read();  // checks its guards
    if (squares != nullptr) *squares = squares_memory.read();
    return {out.read(), states_memory.read()};
  }

  Outputs expected() const {
    Outputs result = {std::vector<float>(x.size()), states};
    int64_t row = 0;
    for (size_t i = 0; i < lengths.size(); row += lengths[i++]) {
      const m4j::SsdArgs args = {
          x.data() + row * x_cols(), x_cols(), dt.data() + row * shape.heads, shape.heads, A.data(),
          B.data() + row * bc_cols(), C.data() + row * bc_cols(), bc_cols(), D.empty() ? nullptr : D.data(),
          dt_bias.empty() ? nullptr : dt_bias.data(), options.softplus, dt_min, dt_max, lengths[i], shape.heads,
          shape.headdim, shape.d_state, shape.n_groups, 0, result.state.data() + slots[i] * state_size(),
          result.out.data() + row * x_cols(), x_cols()};
      reference_ops().ssd_step(args, {0, 1, nullptr, 0});
    }
    return result;
  }

  // Tokens [begin, end) of each sequence, or of the shorter ones what there is of them.
  Problem part(int64_t begin, int64_t end, const std::vector<float>& states_before) const {
    Problem p = *this;
    p.lengths.clear();
    p.slots.clear();
    for (auto* v : {&p.x, &p.dt, &p.B, &p.C, &p.z}) v->clear();
    int64_t row = 0;
    for (size_t i = 0; i < lengths.size(); row += lengths[i++]) {
      const int64_t from = std::min(begin, lengths[i]), to = std::min(end, lengths[i]);
      if (from == to) continue;
      p.lengths.push_back(to - from);
      p.slots.push_back(slots[i]);
      m4j::test::append(p.x, m4j::test::slice_rows(x, x_cols(), row + from, row + to));
      if (!z.empty()) m4j::test::append(p.z, m4j::test::slice_rows(z, x_cols(), row + from, row + to));
      m4j::test::append(p.dt, m4j::test::slice_rows(dt, shape.heads, row + from, row + to));
      m4j::test::append(p.B, m4j::test::slice_rows(B, bc_cols(), row + from, row + to));
      m4j::test::append(p.C, m4j::test::slice_rows(C, bc_cols(), row + from, row + to));
    }
    p.states = states_before;
    return p;
  }

  std::string text() const {
    std::string s = "dtype " + std::to_string(static_cast<int>(dtype)) + ", H " + std::to_string(shape.heads) + ", P " +
                    std::to_string(shape.headdim) + ", N " + std::to_string(shape.d_state) + ", G " +
                    std::to_string(shape.n_groups) + ", lengths";
    for (int64_t n : lengths) s += " " + std::to_string(n);
    return s;
  }
};

class CudaSsdChunk : public ::testing::Test {
 protected:
  void expect_reference(const Problem& problem) { expect_reference(problem, tolerance(problem.dtype)); }

  void expect_reference(const Problem& problem, double allowed) {
    SCOPED_TRACE(problem.text());
    const Outputs outputs = problem.run(), expected = problem.expected();
    m4j::test::expect_close(outputs, expected, allowed);
    // Slots of no sequence keep their bits.
    for (int64_t slot = 0; slot < problem.slot_count(); ++slot) {
      if (std::count(problem.slots.begin(), problem.slots.end(), slot) != 0) continue;
      m4j::test::expect_same_bits(m4j::test::slice_rows(outputs.state, problem.state_size(), slot, slot + 1),
                                  m4j::test::slice_rows(problem.states, problem.state_size(), slot, slot + 1));
    }
    m4j::test::expect_same_bits(problem.run(), outputs);
  }

  // Against the gate behind the reference, and the same problem without it.
  void expect_gate(const Problem& plain) {
    SCOPED_TRACE(plain.text());
    const Problem problem = plain.gated(random);
    std::vector<float> squares, again;
    const Outputs outputs = problem.run(&squares), ungated = plain.run();
    const std::vector<float> y = plain.expected().out;
    std::vector<float> out(y.size()), sums(squares.size());
    for (size_t i = 0; i < y.size(); ++i) {
      const auto row = static_cast<int64_t>(i) / plain.x_cols(), col = static_cast<int64_t>(i) % plain.x_cols();
      const int64_t P = plain.shape.headdim, slab = col / P * ((P + 63) / 64) + col % P / 64;
      const float v = y[i] * problem.z[i] / (1 + std::exp(-problem.z[i]));
      out[i] = v * problem.norm_weight[static_cast<size_t>(col)];
      sums[static_cast<size_t>(row * plain.squares_cols() + slab)] += v * v;
    }
    m4j::test::expect_close(outputs.out, out, tolerance(plain.dtype));
    m4j::test::expect_close(squares, sums, tolerance(plain.dtype));
    m4j::test::expect_same_bits(outputs.state, ungated.state);
    m4j::test::expect_same_bits(problem.run(&again), outputs);
    m4j::test::expect_same_bits(again, squares);
  }
  static bool hopper() { return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9; }

  // Of so many sequences that there are more blocks than multiprocessors.
  static std::vector<int64_t> many_lengths() {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < 70; ++i) lengths.push_back(1 + i * 37 % 131);
    return lengths;
  }

  Random random{m4j::test::run_seed()};
};

TEST_F(CudaSsdChunk, MatchesTheReference) {
  for (DType dtype : kDTypes) {
    for (const Shape& shape : {Shape{1, 1, 1, 1}, Shape{3, 5, 7, 1}, Shape{4, 64, 128, 1}, Shape{5, 64, 128, 1},
                               Shape{6, 64, 64, 2}, Shape{3, 64, 16, 3}, Shape{2, 128, 32, 1}, Shape{2, 32, 256, 1},
                               Shape{3, 72, 200, 1}, Shape{2, 67, 129, 2}, Shape{2, 24, 40, 1}}) {
      for (int64_t gap : {0, 8, 3}) {
        if (random.left_out()) continue;
        expect_reference(Problem::random(random, dtype, shape, {1, 64, 65, 17, 130, 2, 63}, {.gap = gap}));
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CudaSsdChunk, LongSequencesInParts) {
  for (DType dtype : kDTypes) {
    const auto check = [&](const Shape& shape, const std::vector<int64_t>& lengths) {
      if (!random.left_out()) expect_reference(Problem::random(random, dtype, shape, lengths));
    };
    check({1, 13, 33, 1}, {911, 300});
    check({3, 64, 128, 1}, {1700});
    check({2, 64, 64, 1}, {5, 700, 128, 129, 1, 1025});
    check({2, 64, 256, 2}, {640, 127, 511});
  }
}

// A pass lays out its memory for one long sequence, and several shorter ones may want more.
TEST_F(CudaSsdChunk, LessWorkspaceThanItWants) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{1700}, {1025, 5, 700}}) {
    for (double share : {0.0, 0.1, 0.5, 0.9}) {
      Problem problem = Problem::random(random, DType::kBF16, {3, 64, 128, 1}, lengths);
      problem.workspace_share = share;
      expect_reference(problem);
    }
  }
}

// Parts of many chunks, of which heads know everything at their end, something, or next to nothing.
TEST_F(CudaSsdChunk, PartsForgetTheirBeginning) {
  for (DType dtype : kDTypes) {
    Problem problem = Problem::random(random, dtype, {80, 8, 16, 2}, {20'000, 3'000});
    for (size_t head = 0; head < problem.A.size(); ++head) {
      problem.A[head] = -std::exp(random.uniform(1, -14, head % 8 < 4 ? -7.0f : 2.0f).front());
    }
    // The rounding of the decays of some hundred chunks adds up where nothing is forgotten.
    expect_reference(problem, dtype == DType::kF32 ? 2e-4 : tolerance(dtype));
  }
}

// More blocks than multiprocessors: on Hopper some take two slabs where others take three.
TEST_F(CudaSsdChunk, ManySequences) {
  for (DType dtype : kDTypes) {
    for (const Shape& shape : {Shape{4, 64, 128, 1}, Shape{8, 64, 40, 2}}) {
      expect_reference(Problem::random(random, dtype, shape, many_lengths()));
      if (HasFailure()) return;
    }
  }
}

// Of every kind of slab, on lengths around those of chunks, in parts, and with more blocks than multiprocessors.
TEST_F(CudaSsdChunk, GatesItsOutputs) {
  if (!hopper()) GTEST_SKIP() << "the gate is a part of Hopper's kernel";
  for (const Shape& shape : {Shape{1, 8, 8, 1}, Shape{4, 64, 128, 1}, Shape{5, 64, 128, 1}, Shape{7, 16, 24, 1},
                             Shape{2, 128, 32, 1}, Shape{2, 32, 256, 1}, Shape{3, 72, 200, 1}, Shape{6, 64, 64, 2}}) {
    for (int64_t gap : {0, 8}) {
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1, 64, 65, 17, 130, 2, 63}, {1700, 5, 129}, many_lengths()}) {
        if (random.left_out()) continue;
        expect_gate(Problem::random(random, DType::kBF16, shape, lengths, {.gap = gap}));
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(CudaSsdChunk, SaysWhereItTakesNoGate) {
  const auto refused = [&](DType dtype, const Shape& shape, int64_t gap) {
    const Problem plain = Problem::random(random, dtype, shape, {70}, {.gap = gap});
    plain.gated(random).run(nullptr, false);
  };
  refused(DType::kF32, {2, 64, 64, 1}, 0);
  refused(DType::kF16, {2, 64, 64, 1}, 0);
  refused(DType::kBF16, {2, 64, 64, 1}, 3);
  refused(DType::kBF16, {2, 60, 64, 1}, 0);
}

TEST_F(CudaSsdChunk, EveryCombinationOfOptions) {
  for (DType dtype : kDTypes) {
    for (int bits = 0; bits < 8; ++bits) {
      const Options options = {.D = (bits & 1) != 0, .dt_bias = (bits & 2) != 0, .softplus = (bits & 4) != 0};
      expect_reference(Problem::random(random, dtype, {3, 64, 64, 1}, {70, 300}, options));
    }
  }
}

TEST_F(CudaSsdChunk, TimeStepLimits) {
  struct Limits {
    float low, high;
  };
  for (DType dtype : kDTypes) {
    for (const Limits& limits : {Limits{0.1f, 0.2f}, Limits{0, 0.05f}, Limits{0.3f, 0.3f}, Limits{0, 0}}) {
      Problem problem = Problem::random(random, dtype, {2, 64, 128, 1}, {100, 40});
      problem.dt_min = limits.low;
      problem.dt_max = limits.high;
      expect_reference(problem);
    }
  }
}

// Outputs are those of float32 states; states are rounded once, in parts too.
TEST_F(CudaSsdChunk, Bfloat16States) {
  for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{70, 1, 300, 5}, {4000}}) {
    for (const Shape& s : {Shape{3, 20, 24, 1}, Shape{4, 64, 128, 2}, Shape{2, 37, 64, 1}, Shape{2, 64, 256, 1}}) {
      for (DType dtype : kDTypes) {
        if (random.left_out()) continue;
        Problem wide = Problem::random(random, dtype, s, lengths);
        wide.states = rounded(wide.states, DType::kBF16);
        Problem problem = wide;
        problem.state_type = DType::kBF16;
        SCOPED_TRACE(problem.text());
        const Outputs actual = problem.run(), exact = wide.run();
        m4j::test::expect_same_bits(actual.out, exact.out);
        m4j::test::expect_close(actual.state, exact.state, 4e-3);
        m4j::test::expect_same_bits(problem.run(), actual);
      }
    }
  }
}

// From decays that vanish within a token, whose sums over a chunk are large, to almost none.
TEST_F(CudaSsdChunk, ExtremeDecays) {
  for (DType dtype : kDTypes) {
    for (float a : {-1e6f, -1e3f, -30.0f, -1.0f, -1e-6f, 0.0f}) {
      Problem problem = Problem::random(random, dtype, {2, 64, 64, 1}, {300, 1, 90});
      problem.A.assign(problem.A.size(), a);
      expect_reference(problem);
    }
  }
}

// Parts that begin and end anywhere in a chunk move results by rounding only.
TEST_F(CudaSsdChunk, PartsEqualTheWhole) {
  for (DType dtype : kDTypes) {
    Problem problem = Problem::random(random, dtype, {3, 64, 128, 1}, {300, 77, 1, 650});
    if (dtype == DType::kBF16 && hopper()) problem = problem.gated(random);
    const Outputs whole = problem.run();
    for (int64_t length : {649, 200, 65, 64, 63, 1}) {
      if (random.left_out()) continue;
      SCOPED_TRACE("parts of " + std::to_string(length) + ", " + problem.text());
      std::vector<float> states = problem.states, out(problem.x.size());
      for (int64_t begin = 0; begin < 650; begin += length) {
        const Problem part = problem.part(begin, begin + length, states);
        const Outputs outputs = part.run();
        states = outputs.state;
        int64_t row = 0, part_row = 0;
        for (int64_t n : problem.lengths) {
          const int64_t from = std::min(begin, n), to = std::min(begin + length, n);
          std::copy_n(outputs.out.begin() + part_row * problem.x_cols(), (to - from) * problem.x_cols(),
                      out.begin() + (row + from) * problem.x_cols());
          part_row += to - from;
          row += n;
        }
      }
      m4j::test::expect_close(Outputs{out, states}, whole, tolerance(dtype));
    }
  }
}

// Rows so far apart that offsets pass 2^31 elements and 2^32 bytes.
TEST_F(CudaSsdChunk, OffsetsBeyond32Bits) {
  const Problem problem = Problem::random(random, DType::kBF16, {2, 64, 128, 1}, {300, 299});
  const int64_t ld = 4'000'000, tokens = problem.tokens();
  ASSERT_GT(ld * tokens, int64_t{1} << 31);
  const FarMemory x(DType::kBF16, ld * tokens), bc(DType::kBF16, ld * tokens), out(DType::kBF16, ld * tokens);
  x.write_rows(0, ld, problem.x, problem.x_cols());
  bc.write_rows(0, ld, problem.B, problem.bc_cols());
  bc.write_rows(problem.bc_cols(), ld, problem.C, problem.bc_cols());
  const DeviceArray dt(DType::kBF16, problem.dt, 2), A(DType::kF32, problem.A, 2), D(DType::kF32, problem.D, 2),
      bias(DType::kF32, problem.dt_bias, 2);
  const DeviceArray states(DType::kF32, problem.states, problem.state_size());
  const Segment items[] = {{0, 300, problem.slots[0]}, {300, 299, problem.slots[1]}};
  const DeviceArray items_memory(DType::kF32, 1, sizeof(items) / 4);
  must(cudaMemcpy(items_memory.data(), items, sizeof(items), cudaMemcpyHostToDevice));
  const Segments segments = {static_cast<const Segment*>(items_memory.data()), 2, tokens, 300};
  const int64_t bytes = ssd_chunk_workspace(2, 64, 128, 1, segments);
  const DeviceArray workspace(DType::kF32, 1, (bytes + 3) / 4);
  ssd_chunk({DType::kBF16, x.at(0), ld, dt.data(), 2, A.floats(), bc.at(0), bc.at(problem.bc_cols()), ld, D.floats(),
             bias.floats(), true, 0, problem.dt_max, segments, 2, 64, 128, 1, states.floats(), problem.state_size(),
             out.at(0), ld, {workspace.data(), bytes}},
            nullptr);
  m4j::test::expect_close(Outputs{out.read_rows(0, ld, tokens, problem.x_cols()), states.read()}, problem.expected(),
                          1e-2);
}

}  // namespace
}  // namespace m4j::cuda::test
