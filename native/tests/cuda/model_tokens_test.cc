// Tokens that a model on the GPU chooses: those that m4j_sample on the CPU finds in its logits, from every path of the
// forward pass, whether or not the logits leave the GPU too.
#include <gtest/gtest.h>

#include "support/api_test.h"
#include "support/op_test.h"
#include "support/sampling.h"
#include "support/strided.h"

namespace m4j::test {
namespace {

class CudaTokens : public ApiTest, public ::testing::WithParamInterface<TinyOptions> {};

TEST_P(CudaTokens, AreThoseOfTheLogits) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const EnginePtr cpu = make_engine(), gpu = make_gpu_engine();
  const ModelPtr model = make_model(gpu, tiny);
  const StatesPtr states = make_states(model);
  constexpr size_t kMost = 300;
  std::vector<m4j_slot> with_logits, without;
  for (size_t i = 0; i < kMost; ++i) {
    with_logits.push_back(take(states));
    without.push_back(take(states));
  }
  // Steps of few sequences, of many, of as many as no graph holds, prefill, prefill with several rows of logits at once,
  // and steps again, whose graphs must take new parameters.
  struct Call {
    size_t seqs;
    int32_t longest;
  };
  uint64_t draw = 0;
  for (const Call& call : {Call{1, 1}, Call{3, 1}, Call{1, 1}, Call{7, 1}, Call{40, 1}, Call{5, 90}, Call{kMost, 1},
                           Call{kMost, 30}, Call{7, 1}, Call{1, 700}, Call{3, 1}}) {
    SCOPED_TRACE(std::to_string(call.seqs) + " sequences of up to " + std::to_string(call.longest) + " tokens");
    const SampleProblem problem(static_cast<int64_t>(call.seqs), V, random);
    std::vector<m4j_sampling> samplings = problem.samplings;
    std::vector<const m4j_sampling*> how, all;
    std::vector<Tokens> input;
    for (size_t i = 0; i < call.seqs; ++i) {
      samplings[i].recent = problem.recent[i].data();
      samplings[i].n_recent = static_cast<int64_t>(problem.recent[i].size());
      samplings[i].draw = draw++;
      all.push_back(&samplings[i]);
      how.push_back(call.seqs > 2 && i % 5 == 2 ? nullptr : &samplings[i]);
      input.push_back(random.ids(call.longest == 1 ? 1 : 1 + random.ids(1, call.longest)[0], static_cast<int32_t>(V)));
    }
    constexpr int32_t kUntouched = -77;
    const auto next = [&](const std::vector<m4j_slot>& slots, int32_t mode, std::vector<float>* logits) {
      Batch batch({slots.begin(), slots.begin() + static_cast<int64_t>(call.seqs)}, input, mode, V);
      Tokens tokens(call.seqs, kUntouched);
      std::vector<float> log_probs(call.seqs, 7);
      batch.args_.samplings = how.data();
      batch.args_.sampled = tokens.data();
      batch.args_.log_probs = log_probs.data();
      EXPECT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
      if (logits != nullptr) {
        for (size_t i = 0; i < call.seqs; ++i) {  // the last row of each
          const int64_t row = mode == M4J_LOGITS_ALL ? batch.offsets[i + 1] - 1 : static_cast<int64_t>(i);
          append(*logits, slice_rows(batch.logits, V, row, row + 1));
        }
      }
      return std::pair(tokens, log_probs);
    };
    std::vector<float> logits;
    const auto chosen = next(with_logits, draw % 2 == 0 ? M4J_LOGITS_ALL : M4J_LOGITS_LAST, &logits);
    EXPECT_EQ(next(without, M4J_LOGITS_NONE, nullptr), chosen);
    const Strided rows({static_cast<int64_t>(call.seqs), V}, logits, Order::kRowMajor);
    Tokens expected(call.seqs);
    std::vector<float> log_probs(call.seqs);
    const m4j_sample_args args = {sizeof args, rows.tensor(), all.data(), expected.data(), log_probs.data()};
    ASSERT_EQ(m4j_sample(cpu.get(), &args, &err), M4J_OK) << err.message;
    for (size_t i = 0; i < call.seqs; ++i) {
      EXPECT_EQ(chosen.first[i], how[i] == nullptr ? kUntouched : expected[i]) << problem.name(i);
      EXPECT_NEAR(chosen.second[i], how[i] == nullptr ? 7 : log_probs[i], 1e-5);
    }
  }
}

std::vector<TinyOptions> some_options() {
  return {{.family = M4J_MAMBA1, .dtype = DType::kBF16, .even = true},
          {.family = M4J_FALCON_MAMBA, .dtype = DType::kF32, .even = true},
          {.family = M4J_MAMBA2, .dtype = DType::kF16, .n_groups = 1, .even = true},
          {.family = M4J_MAMBA2, .dtype = DType::kBF16, .biases = false, .n_groups = 1, .even = true}};
}

INSTANTIATE_TEST_SUITE_P(Models, CudaTokens, ::testing::ValuesIn(some_options()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace m4j::test
