// The forward pass of every family against a float64 recurrence, on every instruction set.
#include <gtest/gtest.h>

#include "support/api_test.h"
#include "support/weights.h"

namespace m4j::test {
namespace {

constexpr double kTolerance = 1e-5;

std::vector<TinyOptions> all_options() {
  std::vector<TinyOptions> all;
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (int64_t d_conv = 1; d_conv <= 5; ++d_conv) all.push_back({.family = family, .d_conv = d_conv});
    all.push_back({.family = family, .dtype = DType::kF16, .biases = false});
    all.push_back({.family = family, .dtype = DType::kBF16, .tied = true});
  }
  for (const int64_t chunk_size : {1, 2, 7, 64, 4096}) all.push_back({.family = M4J_MAMBA2, .chunk_size = chunk_size});
  for (const int64_t n_groups : {1, 2, 6}) all.push_back({.family = M4J_MAMBA2, .n_groups = n_groups});
  all.push_back({.family = M4J_MAMBA2, .dt_min = 0.1f, .dt_max = 0.3f});
  return all;
}

class ModelForwardTest : public ApiTest, public ::testing::WithParamInterface<TinyOptions> {};

TEST_P(ModelForwardTest, LogitsAndStatesFollowTheRecurrence) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random.ids(23, static_cast<int32_t>(V));
  Recurrence expected(tiny);
  std::vector<double> logits;
  for (const int32_t token : tokens) {
    const auto row = expected.step(token);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    const auto engine = make_engine(2, target.c_str());
    const auto model = make_model(engine, tiny);
    const auto states = make_states(model);
    const m4j_slot slot = take(states);
    EXPECT_LT(relative_error(advance(states, {slot}, {tokens}, V)[0], logits), kTolerance);
    const StateCopy state = read_state(states, slot, tiny);
    EXPECT_LT(relative_error(state.conv, expected.conv), kTolerance);
    EXPECT_LT(relative_error(state.ssm, expected.ssm), kTolerance);
    EXPECT_EQ(state.position, 23);
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelForwardTest, ::testing::ValuesIn(all_options()),
                         [](const auto& info) { return info.param.name(); });

using ModelRoundedTest = ModelForwardTest;

// Activations in bfloat16: a small error on processors that multiply it, and elsewhere nothing. GetParam() has float32.
TEST_P(ModelRoundedTest, ASmallErrorWhereTheProcessorRounds) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random.ids(23, static_cast<int32_t>(V));
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    const auto engine = make_engine(2, target.c_str());
    const auto logits = [&](DType activation_type) {
      tiny.config.activation_type = static_cast<int32_t>(activation_type);
      const auto model = make_model(engine, tiny);
      const auto states = make_states(model);
      return advance(states, {take(states)}, {tokens}, V)[0];
    };
    const std::vector<float> exact = logits(DType::kF32), rounded = logits(DType::kBF16);
    if (multiplies_bf16(target) && GetParam().dtype == DType::kBF16) {
      const double error = relative_error(rounded, {exact.begin(), exact.end()});
      EXPECT_GT(error, 1e-4);
      EXPECT_LT(error, 3e-2);
    } else {
      EXPECT_EQ(rounded, exact);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelRoundedTest,
                         ::testing::Values(TinyOptions{.family = M4J_MAMBA1, .dtype = DType::kBF16},
                                           TinyOptions{.family = M4J_FALCON_MAMBA, .dtype = DType::kBF16},
                                           TinyOptions{.family = M4J_MAMBA2, .dtype = DType::kBF16},
                                           TinyOptions{.family = M4J_MAMBA2, .dtype = DType::kF16}),
                         [](const auto& info) { return info.param.name(); });

using ModelLongInputTest = ModelForwardTest;

// Longer than a block of the forward pass, with a tail that is no whole chunk.
TEST_P(ModelLongInputTest, BlocksDoNotShow) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random.ids(1301, static_cast<int32_t>(V));
  Recurrence expected(tiny);
  std::vector<double> logits, last;
  for (const int32_t token : tokens) {
    last = expected.step(token);
    logits.insert(logits.end(), last.begin(), last.end());
  }
  const auto engine = make_engine();
  const auto model = make_model(engine, tiny);
  const auto states = make_states(model);
  const m4j_slot slot = take(states), other = take(states);
  EXPECT_LT(relative_error(advance(states, {slot}, {tokens}, V)[0], logits), kTolerance);
  const StateCopy state = read_state(states, slot, tiny);
  EXPECT_LT(relative_error(state.conv, expected.conv), kTolerance);
  EXPECT_LT(relative_error(state.ssm, expected.ssm), kTolerance);

  Batch batch({other}, {tokens}, M4J_LOGITS_LAST, V);
  ASSERT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
  EXPECT_LT(relative_error(batch.logits, last), kTolerance);
  EXPECT_EQ(read_state(states, other, tiny), state);
}

INSTANTIATE_TEST_SUITE_P(Models, ModelLongInputTest,
                         ::testing::Values(TinyOptions{.family = M4J_MAMBA1}, TinyOptions{.family = M4J_FALCON_MAMBA},
                                           TinyOptions{.family = M4J_MAMBA2, .chunk_size = 3},
                                           TinyOptions{.family = M4J_MAMBA2, .chunk_size = 300},
                                           TinyOptions{.family = M4J_MAMBA2, .chunk_size = 4096}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace m4j::test
