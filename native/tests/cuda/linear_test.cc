#include "ops/cuda/linear.h"

#include <cmath>
#include <numeric>

#include "ragged.h"

namespace m4j::cuda::test {
namespace {

// Of float32 results: tensor cores cut off sums rather than round them, up to some hundred times in a row.
constexpr double kWideTolerance = 5e-5;

struct Problem {
  DType dtype;
  int64_t tokens, in, out_dim;
  std::vector<float> x, weight, bias;

  Problem(Random& random, DType dtype, int64_t tokens, int64_t in, int64_t out_dim, bool with_bias)
      : dtype(dtype), tokens(tokens), in(in), out_dim(out_dim), x(rounded(random.normal(tokens * in), dtype)),
        weight(rounded(random.normal(out_dim * in), dtype)), bias(random.normal(out_dim, 3, with_bias)) {}

  std::vector<float> run(bool wide, int64_t gap) const {
    static Gemm gemm;
    const DType out_dtype = wide ? DType::kF32 : dtype;
    const DeviceArray x_memory(dtype, x, in, in + gap), weight_memory(dtype, weight, in),
        bias_memory(DType::kF32, bias.empty() ? std::vector<float>(1) : bias, 1), out(out_dtype, tokens, out_dim, out_dim + gap);
    DeviceMatrix matrix;
    matrix.dtype = dtype;
    matrix.data = weight_memory.data();
    matrix.rows = out_dim;
    matrix.columns = in;
    const int64_t bytes = linear_workspace(matrix, dtype, tokens);
    const DeviceArray workspace(DType::kF32, 1, bytes / 4 + 1);
    linear({dtype, x_memory.data(), in + gap, matrix, bias.empty() ? nullptr : bias_memory.floats(), tokens, out_dtype,
            out.data(), out_dim + gap, {workspace.data(), bytes}},
           gemm, nullptr);
    return out.read();
  }

  // In doubles.
  Expected expected() const {
    Expected result;
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t o = 0; o < out_dim; ++o) {
        double sum = bias.empty() ? 0 : bias[o], squares = sum * sum;
        for (int64_t k = 0; k < in; ++k) {
          const double term = static_cast<double>(x[t * in + k]) * weight[o * in + k];
          sum += term;
          squares += term * term;
        }
        result.add(sum, std::sqrt(squares));
      }
    }
    return result;
  }
};

TEST(CudaLinear, AnyNumberOfTokensAndAnyShape) {
  Random random(m4j::test::run_seed());
  struct Shape {
    int64_t in, out_dim;
  };
  for (const Shape& s : {Shape{8, 8}, Shape{72, 40}, Shape{160, 520}, Shape{640, 136}, Shape{1288, 72}, Shape{5120, 24}}) {
    for (const int64_t tokens : {1, 3, 4, 5, 8, 17, 32, 33, 64, 65, 128, 129, 200, 256, 257, 300}) {
      for (DType dtype : kDTypes) {
        if (random.left_out()) continue;
        const bool wide = random.uniform(1, 0, 1)[0] < 0.5f, with_bias = random.uniform(1, 0, 1)[0] < 0.5f;
        SCOPED_TRACE(name_of(dtype) + ", " + std::to_string(tokens) + " tokens, " + std::to_string(s.in) + " to " +
                     std::to_string(s.out_dim) + (wide ? ", wide" : "") + (with_bias ? ", bias" : ""));
        const Problem problem(random, dtype, tokens, s.in, s.out_dim, with_bias);
        const std::vector<float> actual = problem.run(wide, 8);
        expect_close(actual, problem.expected(), wide ? kWideTolerance : tolerance_of(dtype));
        expect_same_bits(problem.run(wide, 8), actual);
      }
    }
  }
}

// As in models: every multiprocessor has work, of tiles of all widths, and the sum over the columns is divided or not.
TEST(CudaLinear, WideMatrices) {
  Random random(m4j::test::run_seed());
  for (const auto& [in, out_dim] : std::vector<std::pair<int64_t, int64_t>>{
           {520, 4104}, {72, 40000}, {5120, 2560}, {5120, 192}, {160, 5120}, {768, 3072}, {1536, 768}, {264, 10240},
           {264, 10576}, {328, 11992}, {136, 16904}, {72, 50288}, {2056, 1376}, {4104, 328}}) {
    const Problem whole(random, random.uniform(1, 0, 1)[0] < 0.5f ? DType::kBF16 : DType::kF16, 250, in, out_dim, true);
    for (const int64_t tokens : {2, 33, 64, 250}) {
      if (random.left_out()) continue;
      SCOPED_TRACE(std::to_string(tokens) + " tokens, " + std::to_string(in) + " to " + std::to_string(out_dim));
      Problem problem = whole;
      problem.tokens = tokens;
      problem.x.resize(static_cast<size_t>(tokens * in));
      const std::vector<float> actual = problem.run(true, 8);
      for (const int64_t token : {int64_t{0}, tokens / 2, tokens - 1}) {
        Problem part = problem;
        part.tokens = 1;
        part.x = slice_rows(problem.x, in, token, token + 1);
        expect_close(slice_rows(actual, out_dim, token, token + 1), part.expected(), kWideTolerance);
      }
      expect_same_bits(problem.run(true, 8), actual);
    }
  }
}

TEST(CudaLinear, OffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  Gemm gemm;
  constexpr int64_t kFar = int64_t{1} << 31;
  // Rows of x and out far apart: few tokens, many, and the kernel for few tokens of any type.
  for (const auto& [dtype, tokens] : {std::pair<DType, int64_t>{DType::kBF16, 3}, {DType::kBF16, 70}, {DType::kF32, 3}}) {
    SCOPED_TRACE(name_of(dtype) + ", " + std::to_string(tokens) + " tokens");
    const int64_t in = 264, out_dim = 520, ld = kFar / (tokens - 1) / 8 * 8 + 8;
    const Problem problem(random, dtype, tokens, in, out_dim, true);
    const FarMemory x(dtype, tokens * ld), out(dtype, tokens * ld);
    for (int64_t t = 0; t < tokens; ++t) x.write(t * ld, part_of(problem.x, in, t));
    const DeviceArray weight(dtype, problem.weight, in), bias(DType::kF32, problem.bias, 1);
    const DeviceMatrix matrix{dtype, weight.data(), nullptr, out_dim, in};
    const int64_t bytes = linear_workspace(matrix, dtype, tokens);
    const DeviceArray workspace(DType::kF32, 1, bytes / 4 + 1);
    linear({dtype, x.at(0), ld, matrix, bias.floats(), tokens, dtype, out.at(0), ld, {workspace.data(), bytes}}, gemm,
           nullptr);
    std::vector<float> actual;
    for (int64_t t = 0; t < tokens; ++t) m4j::test::append(actual, out.read(t * ld, out_dim));
    expect_close(actual, problem.expected(), tolerance_of(dtype));
  }
  // A matrix of more numbers: zeros but for its first and last row.
  const int64_t in = 1 << 15, out_dim = kFar / in + 8;
  const FarMemory weight(DType::kBF16, out_dim * in);
  must(cudaMemset(weight.at(0), 0, static_cast<size_t>(dtype_bytes(DType::kBF16, out_dim * in))));
  const std::vector<float> first = rounded(random.normal(in), DType::kBF16), last = rounded(random.normal(in), DType::kBF16);
  weight.write(0, first);
  weight.write((out_dim - 1) * in, last);
  const DeviceMatrix matrix{DType::kBF16, weight.at(0), nullptr, out_dim, in};
  for (const int64_t tokens : {1, 2, 70}) {
    SCOPED_TRACE(std::to_string(tokens) + " tokens");
    const std::vector<float> x = rounded(random.normal(tokens * in), DType::kBF16);
    const DeviceArray x_memory(DType::kBF16, x, in), out(DType::kF32, tokens, out_dim);
    const int64_t bytes = linear_workspace(matrix, DType::kBF16, tokens);
    const DeviceArray workspace(DType::kF32, 1, bytes / 4 + 1);
    linear({DType::kBF16, x_memory.data(), in, matrix, nullptr, tokens, DType::kF32, out.data(), out_dim,
            {workspace.data(), bytes}},
           gemm, nullptr);
    const std::vector<float> actual = out.read();
    for (const int64_t t : {int64_t{0}, tokens - 1}) {
      const std::vector<float> row = part_of(actual, out_dim, t), x_t = part_of(x, in, t);
      const double allowed = kWideTolerance * in;
      EXPECT_NEAR(row.front(), std::inner_product(first.begin(), first.end(), x_t.begin(), 0.0), allowed);
      EXPECT_NEAR(row.back(), std::inner_product(last.begin(), last.end(), x_t.begin(), 0.0), allowed);
      EXPECT_EQ(row[static_cast<size_t>(out_dim / 2)], 0);
    }
  }
}

}  // namespace
}  // namespace m4j::cuda::test
