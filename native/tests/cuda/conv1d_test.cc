#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

struct Problem {
  DType dtype;
  int64_t tokens, slots, channels, d_conv;
  bool silu;
  std::vector<float> x, weight, bias, windows;

  Problem(Random& random, DType dtype, const Ragged& batch, int64_t channels, int64_t d_conv, bool silu = true,
          bool with_bias = true)
      : dtype(dtype), tokens(batch.tokens), slots(batch.slots), channels(channels), d_conv(d_conv), silu(silu),
        x(rounded(random.normal(tokens * channels), dtype)), weight(random.normal(d_conv * channels)),
        bias(random.normal(channels, 1, with_bias)), windows(random.normal(slots * window_floats())) {}

  int64_t window_floats() const { return (d_conv - 1) * channels; }

  Outputs run(const Ragged& batch, int64_t gap = 8, int64_t bound = 0) const {
    const DeviceArray x_memory(dtype, x, channels, channels + gap), out(dtype, tokens, channels, channels + gap),
        weight_memory(DType::kF32, weight, channels),
        bias_memory(DType::kF32, bias.empty() ? weight : bias, channels),
        window_memory(DType::kF32, windows, window_floats(), window_floats() + gap);
    conv1d({dtype, x_memory.data(), x_memory.ld(), weight_memory.floats(),
            bias.empty() ? nullptr : bias_memory.floats(), window_memory.floats(), window_memory.ld(),
            batch.segments(bound), channels, d_conv, silu, out.data(),
            out.ld()},
           nullptr);
    return {out.read(), window_memory.read()};
  }

  Outputs expected(const Ragged& batch) const {
    Outputs result = {std::vector<float>(x.size()), windows};
    for (const Segment& s : batch.items) {
      m4j::reference::conv1d({&x[s.row * channels], channels, weight.data(), bias.empty() ? nullptr : bias.data(),
                              &result.state[s.slot * window_floats()], s.tokens, channels, d_conv, silu,
                              &result.out[s.row * channels], channels},
                             {0, 1, nullptr, 0});
    }
    return result;
  }

  void expect_correct(const Ragged& batch, int64_t gap = 8) const {
    const Outputs actual = run(batch, gap), exact = expected(batch);
    expect_close(actual.out, exact.out, tolerance_of(dtype));
    expect_same_bits(actual.state, exact.state);
    expect_same_bits(run(batch, gap), actual);
  }
};

class CudaConv1d : public ::testing::Test {
 protected:
  Random random{m4j::test::run_seed()};
};

TEST_F(CudaConv1d, RaggedBatchesOfAnySize) {
  for (const std::vector<int64_t>& lengths :
       {std::vector<int64_t>{1, 37, 2, 1, 301, 32, 33, 3, 5, 8}, std::vector<int64_t>(19, 1),
        std::vector<int64_t>{2, 1}}) {
    const Ragged batch(lengths, random);
    for (int64_t channels : {1, 13, 64, 207, 1032}) {
      for (int64_t d_conv = 2; d_conv <= 8; ++d_conv) {
        for (DType dtype : kDTypes) {
          SCOPED_TRACE(name_of(dtype) + ", C " + std::to_string(channels) + ", K " + std::to_string(d_conv));
          Problem(random, dtype, batch, channels, d_conv).expect_correct(batch);
        }
      }
    }
  }
}

// Threads take fewer channels where there are few blocks: each sequence as it is alone.
TEST_F(CudaConv1d, StepsOfFewAndManySequences) {
  const int64_t C = 1536, K = 4;
  for (int64_t count : {8, 9, 150, 230, 330}) {
    const Ragged batch(std::vector<int64_t>(static_cast<size_t>(count), 1), random);
    for (DType dtype : kDTypes) {
      if (random.left_out()) continue;
      SCOPED_TRACE(name_of(dtype) + ", " + std::to_string(count) + " sequences");
      const Problem problem(random, dtype, batch, C, K);
      problem.expect_correct(batch);
      const Segment& some = batch.items[static_cast<size_t>(random.ids(1, count)[0])];
      Problem alone = problem;
      alone.tokens = alone.slots = 1;
      alone.x = part_of(problem.x, C, some.row);
      alone.windows = part_of(problem.windows, problem.window_floats(), some.slot);
      expect_same_bits(alone.run(Ragged({{0, 1, 0}}, 1)).out, part_of(problem.run(batch).out, C, some.row));
    }
  }
}

TEST_F(CudaConv1d, OptionsAlignmentAndBounds) {
  const Ragged batch({1, 40, 2}, random);
  for (int bits = 0; bits < 4; ++bits) {
    const Problem problem(random, DType::kBF16, batch, 72, 4, (bits & 1) != 0, (bits & 2) != 0);
    problem.expect_correct(batch);
    expect_same_bits(problem.run(batch, 1), problem.run(batch, 8));
    expect_same_bits(problem.run(batch, 8, 1000), problem.run(batch, 8));
  }
}

TEST_F(CudaConv1d, PartsEqualTheWhole) {
  const int64_t tokens = 101, C = 72;
  const Ragged whole_batch({{0, tokens, 0}}, 1);
  for (int64_t d_conv : {2, 4, 7}) {
    const Problem problem(random, DType::kF32, whole_batch, C, d_conv);
    const Outputs whole = problem.run(whole_batch);
    for (int64_t length : {1, 2, 3, 5, 32, 100}) {
      SCOPED_TRACE("K " + std::to_string(d_conv) + ", parts of " + std::to_string(length));
      Outputs parts = {{}, problem.windows};
      for (int64_t t = 0; t < tokens; t += length) {
        Problem p = problem;
        p.tokens = std::min(length, tokens - t);
        p.x = slice_rows(problem.x, C, t, t + p.tokens);
        p.windows = parts.state;
        const Outputs part = p.run(Ragged({{0, p.tokens, 0}}, 1));
        append(parts.out, part.out);
        parts.state = part.state;
      }
      expect_same_bits(parts, whole);
    }
  }
}

TEST_F(CudaConv1d, OffsetsBeyond32Bits) {
  const int64_t far = (int64_t{1} << 30) + 8, C = 72, K = 4, stride = (int64_t{1} << 31) + 4;
  const Ragged batch({{0, 3, 1}}, 2);
  const Problem problem(random, DType::kBF16, batch, C, K);
  const FarMemory rows(DType::kBF16, 2 * far + 1000), windows(DType::kF32, stride + 3 * C);
  for (int64_t t = 0; t < 3; ++t) rows.write(t * far, part_of(problem.x, C, t));
  windows.write(stride, part_of(problem.windows, 3 * C, 1));
  const DeviceArray weight(DType::kF32, problem.weight, C), bias(DType::kF32, problem.bias, C);
  conv1d({DType::kBF16, rows.at(0), far, weight.floats(), bias.floats(), static_cast<float*>(windows.at(0)), stride,
          batch.segments(), C, K, true, rows.at(200), far},
         nullptr);
  const Outputs exact = problem.expected(batch);
  expect_close(rows.read(2 * far + 200, C), part_of(exact.out, C, 2), tolerance_of(DType::kBF16));
  expect_same_bits(windows.read(stride, 3 * C), part_of(exact.state, 3 * C, 1));
}

}  // namespace
}  // namespace m4j::cuda::test
