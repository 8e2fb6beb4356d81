#include "device_array.h"
#include "ops/cuda/cuda_ops.h"
#include "support/op_test.h"

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

}  // namespace
}  // namespace m4j::cuda::test
