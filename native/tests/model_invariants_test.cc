// The library's first invariant: however a sequence is split into calls, whatever batch it travels in and whatever the
// number of threads, the result is the same.
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "support/api_test.h"

namespace m4j::test {
namespace {

class ModelInvariantsTest : public ApiTest, public ::testing::WithParamInterface<TinyOptions> {
 protected:
  bool mamba2() const { return GetParam().family == M4J_MAMBA2; }

  // Bit-equal in Mamba-1. In Mamba-2 a split changes which tokens meet in a matrix product, and where activations are
  // rounded to bfloat16 what differs by float32 rounding may end on either side of a tie.
  void expect_same(const std::vector<float>& actual, const std::vector<float>& expected) const {
    if (mamba2()) {
      const double bound = GetParam().activation_type == DType::kBF16 ? 1e-2 : 1e-6;
      EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), bound);
    } else {
      EXPECT_EQ(actual, expected);
    }
  }
  void expect_same(const StateCopy& actual, const StateCopy& expected) const {
    EXPECT_EQ(actual.position, expected.position);
    expect_same(actual.conv, expected.conv);
    expect_same(actual.ssm, expected.ssm);
  }

  std::vector<Tokens> random_sequences(std::vector<int64_t> lengths, const TinyModel& tiny) {
    std::vector<Tokens> result;
    for (const int64_t n : lengths) result.push_back(random.ids(n, static_cast<int32_t>(tiny.config.vocab_size)));
    return result;
  }
};

TEST_P(ModelInvariantsTest, EverySplitEqualsTheWhole) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random_sequences({11}, tiny)[0];
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    const auto engine = make_engine(2, target.c_str());
    const auto model = make_model(engine, tiny);
    const auto states = make_states(model);
    const m4j_slot slot = take(states);
    const auto whole = advance(states, {slot}, {tokens}, V)[0];
    const StateCopy whole_state = read_state(states, slot, tiny);
    const int64_t n = static_cast<int64_t>(tokens.size());
    for (int64_t first = 1; first < n; ++first) {
      for (int64_t second = first; second < n; ++second) {  // two cuts, or one where they coincide
        SCOPED_TRACE("cut at " + std::to_string(first) + " and " + std::to_string(second));
        ASSERT_EQ(m4j_slot_reset(states.get(), slot, &err), M4J_OK) << err.message;
        std::vector<float> logits;
        int64_t begin = 0;
        for (const int64_t end : {first, second, n}) {
          if (end == begin) continue;
          const auto part = advance(states, {slot}, {{tokens.begin() + begin, tokens.begin() + end}}, V)[0];
          logits.insert(logits.end(), part.begin(), part.end());
          begin = end;
        }
        expect_same(logits, whole);
        expect_same(read_state(states, slot, tiny), whole_state);
        if (HasFailure()) return;
      }
    }
  }
}

TEST_P(ModelInvariantsTest, TokenByTokenEqualsTheWhole) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random_sequences({601}, tiny)[0];
  const auto engine = make_engine();
  const auto model = make_model(engine, tiny);
  const auto states = make_states(model);
  const m4j_slot whole_slot = take(states), step_slot = take(states);
  const auto whole = advance(states, {whole_slot}, {tokens}, V)[0];
  std::vector<float> steps;
  for (const int32_t token : tokens) {
    const auto row = advance(states, {step_slot}, {{token}}, V)[0];
    steps.insert(steps.end(), row.begin(), row.end());
  }
  expect_same(steps, whole);
  expect_same(read_state(states, step_slot, tiny), read_state(states, whole_slot, tiny));
}

TEST_P(ModelInvariantsTest, BatchDoesNotShow) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  // Their sum is above the block of the forward pass, so some sequences are cut and others start within a block.
  const auto sequences = random_sequences({1, 5, 300, 2, 299, 1, 17, 64}, tiny);
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    const auto engine = make_engine(2, target.c_str());
    const auto model = make_model(engine, tiny);
    const auto states = make_states(model);
    std::vector<m4j_slot> slots;
    for (size_t i = 0; i < sequences.size(); ++i) slots.push_back(take(states));
    const auto together = advance(states, slots, sequences, V);

    std::vector<m4j_slot> last_slots;
    for (size_t i = 0; i < sequences.size(); ++i) last_slots.push_back(take(states));
    Batch last(last_slots, sequences, M4J_LOGITS_LAST, V);
    ASSERT_EQ(m4j_advance(states.get(), last.args(), &err), M4J_OK) << err.message;

    const m4j_slot none_slot = take(states);
    for (size_t i = 0; i < sequences.size(); ++i) {
      SCOPED_TRACE("sequence " + std::to_string(i));
      const m4j_slot alone = take(states);
      expect_same(together[i], advance(states, {alone}, {sequences[i]}, V)[0]);
      expect_same(read_state(states, slots[i], tiny), read_state(states, alone, tiny));
      const auto last_row = last.logits.begin() + static_cast<int64_t>(i) * V;
      EXPECT_TRUE(std::equal(last_row, last_row + V, together[i].end() - V));
      EXPECT_EQ(read_state(states, last_slots[i], tiny), read_state(states, slots[i], tiny));

      ASSERT_EQ(m4j_slot_reset(states.get(), none_slot, &err), M4J_OK);
      Batch none({none_slot}, {sequences[i]}, M4J_LOGITS_NONE, V);
      ASSERT_EQ(m4j_advance(states.get(), none.args(), &err), M4J_OK) << err.message;
      EXPECT_EQ(read_state(states, none_slot, tiny), read_state(states, alone, tiny));
    }
  }
}

TEST_P(ModelInvariantsTest, ThreadsDoNotShow) {
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const auto sequences = random_sequences({3, 40, 1}, tiny);
  for (const std::string& target : simd_targets()) {
    SCOPED_TRACE(target);
    std::vector<std::vector<float>> first_logits;
    std::vector<StateCopy> first_states;
    for (const int threads : {1, 2, 3, 7}) {
      const auto engine = make_engine(threads, target.c_str());
      const auto model = make_model(engine, tiny);
      const auto states = make_states(model);
      const std::vector<m4j_slot> slots = {take(states), take(states), take(states)};
      const auto logits = advance(states, slots, sequences, V);
      std::vector<StateCopy> copies;
      for (const m4j_slot slot : slots) copies.push_back(read_state(states, slot, tiny));
      if (threads == 1) {
        first_logits = logits;
        first_states = copies;
      }
      EXPECT_EQ(logits, first_logits) << threads << " threads";
      EXPECT_EQ(copies, first_states) << threads << " threads";
    }
  }
}

// Several threads on slots of their own share one engine; what they get is what each would get alone.
TEST_P(ModelInvariantsTest, CallersDoNotShow) {
  constexpr int kCallers = 4, kSteps = 20;
  TinyModel tiny(GetParam(), run_seed());
  const int64_t V = tiny.config.vocab_size;
  const auto engine = make_engine(2);
  const auto model = make_model(engine, tiny);
  const auto states = make_states(model);
  const auto sequences = random_sequences(std::vector<int64_t>(kCallers, kSteps + 9), tiny);
  std::vector<std::vector<float>> results(kCallers);
  const auto walk = [&](size_t caller) {
    const m4j_slot slot = take(states);
    const Tokens& tokens = sequences[caller];
    std::vector<float> logits = advance(states, {slot}, {{tokens.begin(), tokens.begin() + 9}}, V)[0];
    for (int i = 0; i < kSteps; ++i) {
      const auto row = advance(states, {slot}, {{tokens[static_cast<size_t>(9 + i)]}}, V)[0];
      logits.insert(logits.end(), row.begin(), row.end());
    }
    m4j_error release_err{};
    EXPECT_EQ(m4j_slot_release(states.get(), slot, &release_err), M4J_OK) << release_err.message;
    return logits;
  };
  std::vector<std::thread> callers;
  for (size_t i = 0; i < kCallers; ++i) callers.emplace_back([&, i] { results[i] = walk(i); });
  for (std::thread& t : callers) t.join();
  for (size_t i = 0; i < kCallers; ++i) EXPECT_EQ(results[i], walk(i)) << "caller " << i;
}

TinyOptions rounded(int32_t family) {
  return {.family = family, .dtype = DType::kBF16, .activation_type = DType::kBF16};
}

INSTANTIATE_TEST_SUITE_P(Models, ModelInvariantsTest,
                         ::testing::Values(TinyOptions{.family = M4J_MAMBA1}, TinyOptions{.family = M4J_MAMBA1, .d_conv = 1},
                                           TinyOptions{.family = M4J_MAMBA1, .dtype = DType::kBF16},
                                           TinyOptions{.family = M4J_FALCON_MAMBA, .dtype = DType::kF16},
                                           rounded(M4J_MAMBA1), rounded(M4J_FALCON_MAMBA), rounded(M4J_MAMBA2),
                                           TinyOptions{.family = M4J_MAMBA2},
                                           TinyOptions{.family = M4J_MAMBA2, .d_conv = 1, .n_groups = 2, .chunk_size = 7},
                                           TinyOptions{.family = M4J_MAMBA2, .dtype = DType::kF16, .chunk_size = 64}),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace m4j::test
