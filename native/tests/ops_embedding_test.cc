#include "support/op_test.h"
#include "support/weights.h"

namespace m4j::test {
namespace {

M4J_OP_TEST_SUITE(Embedding);

struct Problem {
  int64_t d_model;
  Weights table;  // [V, D]
  std::vector<int32_t> ids;

  int64_t tokens() const { return static_cast<int64_t>(ids.size()); }

  Outputs run(const Runner& r) const {
    const GuardedWeights table_memory(table, d_model, r.layout);
    const auto ids_memory = Guarded<int32_t>::input(ids, tokens(), r.layout);
    const auto out = r.out(tokens(), d_model);
    r.execute(r.ops.embedding,
              {table_memory.data(), table.dtype, ids_memory.data(), tokens(), d_model, table_memory.ld(), out.data(),
               out.ld()});
    return {out.values(), {}};
  }

  std::vector<float> exact() const {
    std::vector<float> rows;
    for (int32_t id : ids) {
      for (int64_t i = 0; i < d_model; ++i) rows.push_back(static_cast<float>(table[id * d_model + i]));
    }
    return rows;
  }
};

TEST_P(Embedding, CopiesRowsExactly) {
  struct Shape {
    int64_t tokens, d_model;
    int32_t vocab_size;
  };
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{2, 13, 5}, Shape{13, 207, 31}, Shape{67, 64, 7}, Shape{3, 4098, 4}}) {
    for (DType dtype : kDTypes) {
      SCOPED_TRACE(dtype_name(dtype) + ", d_model " + std::to_string(shape.d_model));
      const Problem problem = {shape.d_model, Weights::random(random, dtype, shape.vocab_size * shape.d_model),
                               random.ids(shape.tokens, shape.vocab_size)};
      expect_same_bits(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact());
    }
  }
}

TEST_P(Embedding, ReadsTheFirstAndTheLastRow) {
  for (DType dtype : kDTypes) {
    const Problem problem = {13, Weights::random(random, dtype, 50 * 13), {49, 0, 49, 49, 0}};
    expect_same_bits(run_everywhere([&](const Runner& r) { return problem.run(r); }).out, problem.exact());
  }
}

}  // namespace
}  // namespace m4j::test
