#include "ragged.h"

namespace m4j::cuda::test {
namespace {

TEST(CudaEmbedding, CopiesRows) {
  m4j::test::Random random(m4j::test::run_seed());
  const int64_t vocab = 101, tokens = 37;
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int64_t d_model : {1, 13, 207, 768}) {
      SCOPED_TRACE("dtype " + std::to_string(static_cast<int>(dtype)) + ", d_model " + std::to_string(d_model));
      const std::vector<float> table = rounded(random.normal(vocab * d_model), dtype);
      const std::vector<int32_t> ids = random.ids(tokens, vocab);
      const DeviceArray table_memory(dtype, table, d_model), out(DType::kF32, tokens, d_model);
      DeviceArray id_memory(DType::kF32, 1, tokens);
      must(cudaMemcpy(id_memory.data(), ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
      embedding({table_memory.data(), dtype, d_model, static_cast<const int32_t*>(id_memory.data()), tokens, d_model,
                 out.floats(), d_model},
                nullptr);
      std::vector<float> expected;
      for (int32_t id : ids) m4j::test::append(expected, m4j::test::slice_rows(table, d_model, id, id + 1));
      m4j::test::expect_same_bits(out.read(), expected);
    }
  }
}

TEST(CudaEmbedding, OffsetsBeyond32Bits) {
  m4j::test::Random random(m4j::test::run_seed());
  const int64_t far = (int64_t{1} << 30) + 8, d_model = 72;
  const FarMemory table(DType::kBF16, 2 * far + d_model), out(DType::kF32, 2 * far + d_model);
  const std::vector<float> row = rounded(random.normal(d_model), DType::kBF16);
  table.write(2 * far, row);
  const std::vector<int32_t> ids(3, 2);
  DeviceArray id_memory(DType::kF32, 1, 3);
  must(cudaMemcpy(id_memory.data(), ids.data(), ids.size() * 4, cudaMemcpyHostToDevice));
  embedding({table.at(0), DType::kBF16, far, static_cast<const int32_t*>(id_memory.data()), 3, d_model,
             static_cast<float*>(out.at(0)), far},
            nullptr);
  m4j::test::expect_same_bits(out.read(2 * far, d_model), row);
}

}  // namespace
}  // namespace m4j::cuda::test
