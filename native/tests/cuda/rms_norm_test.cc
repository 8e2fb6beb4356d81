#include <cmath>

#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

enum class Kind { kPlain, kWeightless, kInPlace, kResidual, kScaled, kResidualAlone, kGated, kGatedInPlace };
constexpr Kind kKinds[] = {Kind::kPlain,  Kind::kWeightless,    Kind::kInPlace, Kind::kResidual,
                           Kind::kScaled, Kind::kResidualAlone, Kind::kGated,   Kind::kGatedInPlace};

struct Problem {
  DType dtype;
  int64_t tokens, dim, n_groups;
  Kind kind;
  std::vector<float> x, residual, gate, weight, x_scale;

  Problem(Random& random, DType dtype, int64_t tokens, int64_t dim, int64_t n_groups, Kind kind)
      : dtype(dtype), tokens(tokens), dim(dim), n_groups(n_groups), kind(kind),
        x(rounded(random.normal(tokens * dim), dtype)), residual(random.normal(tokens * dim, 3)),
        gate(rounded(random.normal(tokens * dim, 2), dtype)), weight(random.normal(dim)),
        x_scale(random.uniform(tokens, 0.1f, 3)) {}

  bool has_residual() const {
    return kind == Kind::kResidual || kind == Kind::kScaled || kind == Kind::kResidualAlone;
  }
  bool has_gate() const { return kind == Kind::kGated || kind == Kind::kGatedInPlace; }
  bool in_place() const { return kind == Kind::kInPlace || kind == Kind::kGatedInPlace; }

  // out, and the residual stream
  Outputs run(int64_t gap) const {
    const DeviceArray x_memory(dtype, x, dim, dim + gap), gate_memory(dtype, gate, dim, dim + gap),
        residual_memory(DType::kF32, residual, dim), weight_memory(DType::kF32, weight, dim),
        out_memory(dtype, tokens, dim, dim + gap), scale_memory(DType::kF32, x_scale, 1);
    const DeviceArray& out = in_place() ? x_memory : out_memory;
    rms_norm({dtype, kind == Kind::kResidualAlone ? nullptr : x_memory.data(), dim + gap,
              has_residual() ? residual_memory.floats() : nullptr, has_gate() ? gate_memory.data() : nullptr, dim + gap,
              kind == Kind::kWeightless ? nullptr : weight_memory.floats(), 1e-5f, tokens, dim, n_groups, out.data(),
              dim + gap, kind == Kind::kScaled ? scale_memory.floats() : nullptr},
             nullptr);
    return {out.read(), residual_memory.read()};
  }

  Outputs expected() const {
    Outputs result = {std::vector<float>(x.size()), residual};
    std::vector<float> input = has_residual() ? residual : x;
    if (kind == Kind::kScaled) {
      for (size_t i = 0; i < x.size(); ++i) input[i] = std::fmaf(x_scale[i / static_cast<size_t>(dim)], x[i], input[i]);
    }
    m4j::reference::rms_norm({input.data(), dim, kind == Kind::kResidual ? x.data() : nullptr, dim,
                              has_gate() ? gate.data() : nullptr, dim,
                              kind == Kind::kWeightless ? nullptr : weight.data(), 1e-5f, tokens, dim, n_groups,
                              result.out.data(), dim},
                             {0, 1, nullptr, 0});
    if (has_residual()) result.state = input;
    return result;
  }
};

TEST(CudaRmsNorm, EveryKindOfAnySize) {
  Random random(m4j::test::run_seed());
  struct Shape {
    int64_t tokens, dim, n_groups;
  };
  for (const Shape& s : {Shape{1, 1, 1}, Shape{7, 13, 1}, Shape{37, 768, 1}, Shape{5, 2560, 1}, Shape{3, 5120, 8},
                         Shape{2, 207, 3}, Shape{3, 10240, 1}, Shape{2, 20000, 1}, Shape{2, 40000, 1},
                         Shape{9, 96, 12}}) {
    for (DType dtype : kDTypes) {
      for (Kind kind : kKinds) {
        for (int64_t gap : {0, 3, 8}) {
          if (random.left_out()) continue;
          SCOPED_TRACE(name_of(dtype) + ", D " + std::to_string(s.dim) + ", G " + std::to_string(s.n_groups) +
                       ", kind " + std::to_string(static_cast<int>(kind)) + ", gap " + std::to_string(gap));
          const Problem problem(random, dtype, s.tokens, s.dim, s.n_groups, kind);
          const Outputs actual = problem.run(gap), exact = problem.expected();
          expect_close(actual.out, exact.out, tolerance_of(dtype));
          expect_same_bits(actual.state, exact.state);
          expect_same_bits(problem.run(gap), actual);
        }
      }
    }
  }
}

TEST(CudaRmsNorm, ScalesFromSquares) {
  Random random(m4j::test::run_seed());
  for (int64_t tokens : {1, 7, 8, 333}) {
    for (int64_t parts : {1, 5, 32, 80, 129}) {
      const std::vector<float> squares = random.uniform(tokens * parts, 0, 30);
      const DeviceArray squares_memory(DType::kF32, squares, parts), out(DType::kF32, tokens, 1);
      rms_scale({squares_memory.floats(), tokens, parts, 100, 1e-2f, out.floats()}, nullptr);
      std::vector<float> expected;
      for (int64_t t = 0; t < tokens; ++t) {
        double sum = 0;
        for (int64_t i = 0; i < parts; ++i) sum += squares[static_cast<size_t>(t * parts + i)];
        expected.push_back(static_cast<float>(1 / std::sqrt(sum / 100 + 1e-2)));
      }
      expect_close(out.read(), expected, 1e-6);
    }
  }
}

TEST(CudaRmsNorm, OffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t far = (int64_t{1} << 30) + 8, dim = 72;
  const Problem problem(random, DType::kBF16, 3, dim, 1, Kind::kGated);
  const FarMemory rows(DType::kBF16, 2 * far + 1000);
  for (int64_t t = 0; t < 3; ++t) {
    rows.write(t * far, part_of(problem.x, dim, t));
    rows.write(t * far + 100, part_of(problem.gate, dim, t));
  }
  const DeviceArray weight(DType::kF32, problem.weight, dim);
  rms_norm({DType::kBF16, rows.at(0), far, nullptr, rows.at(100), far, weight.floats(), 1e-5f, 3, dim, 1,
            rows.at(200), far},
           nullptr);
  expect_close(rows.read(2 * far + 200, dim), part_of(problem.expected().out, dim, 2), tolerance_of(DType::kBF16));
}

}  // namespace
}  // namespace m4j::cuda::test
