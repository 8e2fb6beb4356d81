// Kernels that move and convert rows and weights, where 32-bit offsets would end; smaller ones are part of every model
// and operation.
#include <gtest/gtest.h>

#include "ops/cuda/convert.h"
#include "ops/cuda/copy.h"
#include "ops/quantize.h"
#include "ragged.h"

namespace m4j::cuda::test {
namespace {

constexpr int64_t kFar = int64_t{1} << 31;

// One row again and again, to more elements than 32 bits count.
TEST(CudaCopy, CountsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t rows = (1 << 16) + 3, columns = (1 << 16) + 5;
  ASSERT_GT(rows * columns, int64_t{1} << 32);
  const std::vector<float> row = rounded(random.normal(columns), DType::kBF16);
  const DeviceArray x(DType::kBF16, row, columns);
  const FarMemory out(DType::kBF16, rows * columns);
  copy({DType::kBF16, x.data(), {1, 1, rows, columns}, {0, 0, 0, 1}},
       {DType::kBF16, out.at(0), {1, 1, rows, columns}, {0, 0, columns, 1}}, nullptr);
  for (const int64_t r : {int64_t{0}, rows / 2, rows - 1}) expect_same_bits(out.read(r * columns, columns), row);
}

TEST(CudaCopy, TransposesWithOffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t rows = 3, columns = 70, ld = kFar / 2 + 8;
  const std::vector<float> values = rounded(random.normal(rows * columns), DType::kBF16);
  const FarMemory x(DType::kBF16, (rows - 1) * ld + columns);
  for (int64_t r = 0; r < rows; ++r) x.write(r * ld, part_of(values, columns, r));
  const DeviceArray turned(DType::kBF16, columns, rows);
  copy({DType::kBF16, x.at(0), {1, 1, rows, columns}, {0, 0, ld, 1}},
       {DType::kBF16, turned.data(), {1, 1, rows, columns}, {0, 0, 1, rows}}, nullptr);
  std::vector<float> expected;
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) expected.push_back(values[static_cast<size_t>(r * columns + c)]);
  }
  expect_same_bits(turned.read(), expected);
}

// Blocks of zeros but for the last one.
TEST(CudaConvert, OffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  constexpr int64_t kColumns = 1 << 15, kRows = kFar / kColumns + 2, kBlocks = kRows * kColumns / kQuantBlock;
  const std::vector<float> values = random.normal(kQuantBlock);
  const int64_t block_bytes = dtype_bytes(DType::kQ8_0, kQuantBlock);
  std::vector<uint8_t> block(static_cast<size_t>(block_bytes));
  ASSERT_TRUE(quantize(values.data(), DType::kF32, kQuantBlock, DType::kQ8_0, block.data()));
  uint8_t* blocks = nullptr;
  must(cudaMalloc(&blocks, static_cast<size_t>(kBlocks * block_bytes)));
  must(cudaMemset(blocks, 0, static_cast<size_t>(kBlocks * block_bytes)));
  must(cudaMemcpy(blocks + (kBlocks - 1) * block_bytes, block.data(), block.size(), cudaMemcpyHostToDevice));
  std::vector<float> expected(kQuantBlock);
  for (int64_t i = 0; i < kQuantBlock; ++i) expected[static_cast<size_t>(i)] = load_f32(block.data(), DType::kQ8_0, i);
  const int64_t last = (kBlocks - 1) * kQuantBlock;
  {
    const FarMemory out(DType::kBF16, kRows * kColumns);
    convert({DType::kQ8_0, blocks, kRows, kColumns, DType::kBF16, out.at(0), kColumns, nullptr}, nullptr);
    expect_same_bits(out.read(last, kQuantBlock), rounded(expected, DType::kBF16));
    expect_same_bits(out.read(last - kQuantBlock, kQuantBlock), std::vector<float>(kQuantBlock));
  }
  int8_t* codes = nullptr;
  must(cudaMalloc(&codes, static_cast<size_t>(kRows * kColumns)));
  const FarMemory scales(DType::kF16, kBlocks);
  convert({DType::kQ8_0, blocks, kRows, kColumns, DType::kQ8_0, codes, kColumns, scales.at(0)}, nullptr);
  std::vector<int8_t> last_codes(kQuantBlock);
  must(cudaMemcpy(last_codes.data(), codes + last, last_codes.size(), cudaMemcpyDeviceToHost));
  std::vector<float> actual;
  for (const int8_t code : last_codes) actual.push_back(code * scales.read(kBlocks - 1, 1)[0]);
  expect_same_bits(actual, expected);
  cudaFree(codes);
  cudaFree(blocks);
}

TEST(CudaGather, OffsetsBeyond32Bits) {
  Random random(m4j::test::run_seed());
  const int64_t dim = 1 << 13, rows = kFar / dim + 2;
  const Ragged batch({{0, 1, 0}, {1, rows - 1, 1}}, 2);
  const FarMemory x(DType::kBF16, rows * dim), residual(DType::kF32, rows * dim);
  std::vector<float> expected;
  for (const int64_t row : {int64_t{0}, rows - 1}) {
    const std::vector<float> a = rounded(random.normal(dim), DType::kBF16), b = random.normal(dim);
    x.write(row * dim, a);
    residual.write(row * dim, b);
    for (size_t i = 0; i < a.size(); ++i) expected.push_back(a[i] + b[i]);
  }
  const DeviceArray out(DType::kF32, 2, dim);
  gather_last({DType::kBF16, static_cast<const float*>(residual.at(0)), x.at(0), nullptr, batch.segments(), dim,
               out.floats()},
              nullptr);
  expect_same_bits(out.read(), expected);
}

}  // namespace
}  // namespace m4j::cuda::test
