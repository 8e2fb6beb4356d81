// m4j_sample, and the tokens that m4j_advance chooses.
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <functional>

#include "support/api_test.h"
#include "support/op_test.h"
#include "support/sampling.h"
#include "support/strided.h"

namespace m4j::test {
namespace {

class ApiSampleTest : public ApiTest {
 protected:
  TinyModel tiny{{.family = M4J_MAMBA2}, run_seed()};
  int64_t V = tiny.config.vocab_size;
  EnginePtr engine = make_engine();
  ModelPtr model = make_model(engine, tiny);
  StatesPtr states = make_states(model);

  ~ApiSampleTest() override {
    states.reset();
    model.reset();
    engine.reset();
  }

  static constexpr int kSampling = 6;
  // Different parameters a sequence; the sixth of each six is chosen nothing for.
  std::vector<m4j_sampling> samplings(size_t count) {
    std::vector<m4j_sampling> all;
    for (size_t i = 0; i < count; ++i) {
      m4j_sampling s = i % kSampling == 0 ? greedy_sampling() : random_sampling(0.5f + static_cast<float>(i % 3), i);
      if (i % 2 == 1) s.top_k = 5;
      if (i % 3 == 1) s.top_p = 0.8f;
      s.repetition_penalty = i % 4 == 3 ? 1.5f : 1;
      s.recent = recent_.data();
      s.n_recent = static_cast<int64_t>(recent_.size());
      all.push_back(s);
    }
    return all;
  }
  static std::vector<const m4j_sampling*> pointers(const std::vector<m4j_sampling>& all) {
    std::vector<const m4j_sampling*> result;
    for (size_t i = 0; i < all.size(); ++i) result.push_back(i % kSampling == kSampling - 1 ? nullptr : &all[i]);
    return result;
  }

  struct Chosen {
    Tokens tokens;
    std::vector<float> log_probs;
    bool operator==(const Chosen&) const = default;
  };
  static constexpr int32_t kUntouched = -77;

  Chosen next(const std::vector<m4j_slot>& slots, const std::vector<Tokens>& input,
              const std::vector<const m4j_sampling*>& how, int32_t logits_mode, std::vector<float>* logits = nullptr) {
    Batch batch(slots, input, logits_mode, V);
    Chosen chosen{Tokens(slots.size(), kUntouched), std::vector<float>(slots.size(), 7)};
    batch.args_.samplings = how.data();
    batch.args_.sampled = chosen.tokens.data();
    batch.args_.log_probs = chosen.log_probs.data();
    EXPECT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
    if (logits != nullptr) *logits = batch.logits;
    return chosen;
  }

  // What m4j_sample makes of rows of logits.
  Chosen sample(const std::vector<float>& logits, const std::vector<const m4j_sampling*>& how) {
    Chosen chosen{Tokens(how.size(), kUntouched), std::vector<float>(how.size(), 7)};
    const Strided rows({static_cast<int64_t>(how.size()), V}, logits, Order::kRowMajor);
    const m4j_sample_args args = {sizeof args, rows.tensor(), how.data(), chosen.tokens.data(), chosen.log_probs.data()};
    EXPECT_EQ(m4j_sample(engine.get(), &args, &err), M4J_OK) << err.message;
    return chosen;
  }

 private:
  const std::vector<int32_t> recent_ = {3, 5, 8, -1, 1000, 5};
};

TEST_F(ApiSampleTest, AdvanceChoosesWhatItsLogitsSay) {
  constexpr size_t kSeqs = 12;
  const std::vector<m4j_sampling> all = samplings(kSeqs);
  const std::vector<const m4j_sampling*> how = pointers(all);
  std::vector<m4j_slot> slots;
  for (size_t i = 0; i < kSeqs; ++i) slots.push_back(take(states));
  // Short, one token each, and longer than the blocks of the forward pass together.
  for (const int64_t longest : {9, 1, 300}) {
    std::vector<Tokens> input;
    for (size_t i = 0; i < kSeqs; ++i) {
      input.push_back(random.ids(1 + random.ids(1, static_cast<int32_t>(longest))[0], static_cast<int32_t>(V)));
    }
    std::vector<std::vector<char>> snapshots;
    const auto size = static_cast<size_t>(m4j_slot_export_size(model.get()));
    for (const m4j_slot slot : slots) {
      snapshots.emplace_back(size);
      ASSERT_EQ(m4j_slot_export(states.get(), slot, snapshots.back().data(), static_cast<int64_t>(size), &err), M4J_OK);
    }
    const auto restore = [&] {
      for (size_t i = 0; i < kSeqs; ++i) {
        ASSERT_EQ(m4j_slot_import(states.get(), slots[i], snapshots[i].data(), static_cast<int64_t>(size), &err), M4J_OK);
      }
    };
    std::vector<float> last, every;
    const Chosen chosen = next(slots, input, how, M4J_LOGITS_LAST, &last);
    restore();
    EXPECT_EQ(next(slots, input, how, M4J_LOGITS_NONE), chosen);
    restore();
    EXPECT_EQ(next(slots, input, how, M4J_LOGITS_ALL, &every), chosen);
    for (size_t i = 0; i < kSeqs; ++i) {
      if (how[i] == nullptr) {
        EXPECT_EQ(chosen.tokens[i], kUntouched);
        EXPECT_EQ(chosen.log_probs[i], 7);
        continue;
      }
      const Chosen expected = sample(slice_rows(last, V, static_cast<int64_t>(i), static_cast<int64_t>(i) + 1), {how[i]});
      EXPECT_EQ(chosen.tokens[i], expected.tokens[0]);
      EXPECT_EQ(chosen.log_probs[i], expected.log_probs[0]);
    }
  }
}

TEST_F(ApiSampleTest, OlderStructsAreTaken) {
  const m4j_slot slot = take(states), other = take(states);
  Batch batch({slot}, {{1, 2, 3}}, M4J_LOGITS_LAST, V), old({other}, {{1, 2, 3}}, M4J_LOGITS_LAST, V);
  old.args_.struct_size = offsetof(m4j_advance_args, samplings);
  old.args_.samplings = reinterpret_cast<const m4j_sampling* const*>(1);  // not to be read
  ASSERT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
  ASSERT_EQ(m4j_advance(states.get(), old.args(), &err), M4J_OK) << err.message;
  EXPECT_EQ(batch.logits, old.logits);
}

TEST_F(ApiSampleTest, BadParametersAreNamedAndNothingChanges) {
  const m4j_slot slot = take(states);
  const std::vector<float> logits(static_cast<size_t>(V), 0.0f);
  const Strided row({1, V}, logits, Order::kRowMajor);
  const auto refused = [&](const std::function<void(m4j_sampling&)>& change, const std::vector<std::string>& words) {
    m4j_sampling s = random_sampling(1, 1);
    change(s);
    const m4j_sampling* const how = &s;
    int32_t token = kUntouched;
    Batch batch({slot}, {{1, 2}}, M4J_LOGITS_NONE, V);
    batch.args_.samplings = &how;
    batch.args_.sampled = &token;
    expect_error(m4j_advance(states.get(), batch.args(), &err), M4J_ERR_INVALID_ARGUMENT, words);
    const m4j_sample_args args = {sizeof args, row.tensor(), &how, &token, nullptr};
    expect_error(m4j_sample(engine.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, words);
    EXPECT_EQ(token, kUntouched);
    EXPECT_EQ(read_state(states, slot, tiny).position, 0);
  };
  refused([](auto& s) { s.struct_size = 8; }, {"samplings[0].struct_size", "8"});
  refused([](auto& s) { s.candidates = -1; }, {"samplings[0].candidates", "-1"});
  refused([](auto& s) { s.temperature = -1; }, {"samplings[0].temperature", "-1"});
  refused([](auto& s) { s.temperature = NAN; }, {"samplings[0].temperature", "nan"});
  refused([](auto& s) { s.temperature = INFINITY; }, {"samplings[0].temperature", "inf"});
  refused([](auto& s) { s.top_k = -3; }, {"samplings[0].top_k", "-3"});
  refused([](auto& s) { s.top_p = 0; }, {"samplings[0].top_p", "above 0"});
  refused([](auto& s) { s.top_p = 1.5f; }, {"samplings[0].top_p", "1.5"});
  refused([](auto& s) { s.min_p = -0.5f; }, {"samplings[0].min_p", "-0.5"});
  refused([](auto& s) { s.min_p = NAN; }, {"samplings[0].min_p", "nan"});
  refused([](auto& s) { s.repetition_penalty = 0; }, {"samplings[0].repetition_penalty", "> 0"});
  refused([](auto& s) { s.n_recent = -1; }, {"samplings[0].n_recent", "-1"});
  refused([](auto& s) { s.n_recent = 2; }, {"samplings[0].recent", "NULL", "2 ids"});

  const m4j_sampling s = greedy_sampling();
  const m4j_sampling* const how = &s;
  Batch batch({slot}, {{1, 2}}, M4J_LOGITS_NONE, V);
  batch.args_.samplings = &how;
  expect_error(m4j_advance(states.get(), batch.args(), &err), M4J_ERR_INVALID_ARGUMENT, {"args.sampled"});
  int32_t token = kUntouched;
  const m4j_sampling* const nothing = nullptr;
  m4j_sample_args args = {sizeof args, row.tensor(), &nothing, &token, nullptr};
  expect_error(m4j_sample(engine.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, {"samplings[0]", "NULL"});
  args.samplings = nullptr;
  expect_error(m4j_sample(engine.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, {"args.samplings"});
  args.samplings = &how;
  args.tokens = nullptr;
  expect_error(m4j_sample(engine.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, {"args.tokens"});
  expect_error(m4j_sample(engine.get(), nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"args"});
  EXPECT_EQ(read_state(states, slot, tiny).position, 0);
}

TEST_F(ApiSampleTest, LogitsThatAreNoNumbers) {
  std::vector<float> logits(static_cast<size_t>(2 * V), 1.0f);
  logits[static_cast<size_t>(V) + 4] = INFINITY;
  const Strided rows({2, V}, logits, Order::kRowMajor);
  const m4j_sampling s = greedy_sampling();
  const m4j_sampling* const how[] = {&s, &s};
  int32_t tokens[] = {kUntouched, kUntouched};
  const m4j_sample_args args = {sizeof args, rows.tensor(), how, tokens, nullptr};
  expect_error(m4j_sample(engine.get(), &args, &err), M4J_ERR_INVALID_ARGUMENT, {"args.logits[1, 4]", "inf"});
  EXPECT_EQ(tokens[0], kUntouched);

  tiny.norm_f.singles[0] = NAN;
  const ModelPtr damaged = make_model(engine, tiny);
  states = make_states(damaged);
  const Chosen chosen = next({take(states)}, {{1, 2}}, {&s}, M4J_LOGITS_NONE);
  EXPECT_EQ(chosen.tokens[0], -1);
  EXPECT_TRUE(std::isnan(chosen.log_probs[0]));
}

TEST_F(ApiSampleTest, StepsAllocateNothing) {
  const std::vector<m4j_slot> slots = {take(states), take(states)};
  const std::vector<m4j_sampling> all = samplings(2);
  next(slots, {{1}, {2}}, pointers(all), M4J_LOGITS_NONE);
  const int64_t before = m4j_native_bytes();
  for (int i = 0; i < 10; ++i) next(slots, {{3}, {4}}, pointers(all), M4J_LOGITS_NONE);
  EXPECT_EQ(m4j_native_bytes(), before);
}

}  // namespace
}  // namespace m4j::test
