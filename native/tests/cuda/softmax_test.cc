#include "ops/cuda/cuda_ops.h"
#include "ops/reference/reference_ops.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

TEST(CudaSoftmax, RowsOfAnySize) {
  Random random(m4j::test::run_seed());
  const int64_t tokens = 3;
  for (int64_t n : {1, 2, 31, 207, 1024, 8193, 50280}) {
    for (DType dtype : kDTypes) {
      for (bool log : {false, true}) {
        for (float offset : {0.0f, 200.0f}) {
          SCOPED_TRACE(name_of(dtype) + ", n " + std::to_string(n) + (log ? ", log" : ""));
          std::vector<float> x = random.normal(tokens * n, 4);
          for (float& v : x) v += offset;
          x = rounded(x, dtype);
          for (int64_t i = 1; i < n && !log; i += 7) x[static_cast<size_t>(n + i)] = -INFINITY;
          const DeviceArray x_memory(dtype, x, n, n + 5);
          const auto run = [&] {
            const DeviceArray out(DType::kF32, tokens, n, n + 3);
            softmax({dtype, x_memory.data(), n + 5, tokens, n, out.floats(), n + 3, log}, nullptr);
            return out.read();
          };
          std::vector<float> expected(x.size());
          (log ? m4j::reference::log_softmax : m4j::reference::softmax)({x.data(), n, tokens, n, expected.data(), n},
                                                                        {0, 1, nullptr, 0});
          const std::vector<float> actual = run();
          expect_close(actual, expected, 1e-5);
          expect_same_bits(run(), actual);
        }
      }
    }
  }
}

TEST(CudaSoftmax, OffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t far = (int64_t{1} << 30) + 8, n = 77;
  const std::vector<float> x = rounded(random.normal(3 * n), DType::kBF16);
  const FarMemory rows(DType::kBF16, 2 * far + n), out(DType::kF32, 2 * far + n);
  for (int64_t t = 0; t < 3; ++t) rows.write(t * far, part_of(x, n, t));
  softmax({DType::kBF16, rows.at(0), far, 3, n, static_cast<float*>(out.at(0)), far, false}, nullptr);
  std::vector<float> expected(x.size());
  m4j::reference::softmax({x.data(), n, 3, n, expected.data(), n}, {0, 1, nullptr, 0});
  expect_close(out.read(2 * far, n), part_of(expected, n, 2), 1e-5);
}

}  // namespace
}  // namespace m4j::cuda::test
