#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "support/api_test.h"

namespace m4j::test {
namespace {

class ApiAdvanceTest : public ApiTest {
 protected:
  TinyModel tiny{{.family = M4J_FALCON_MAMBA}, run_seed()};
  int64_t V = tiny.config.vocab_size;
  EnginePtr engine = make_engine();
  ModelPtr model = make_model(engine, tiny);
  StatesPtr states = make_states(model);
  m4j_slot first = take(states), second = take(states);

  ~ApiAdvanceTest() override {
    states.reset();
    model.reset();
    engine.reset();
  }

  // A batch after `change` is refused, names all of `words`, and changes neither states nor logits.
  void expect_refused(const std::function<void(m4j_advance_args&, Batch&)>& change,
                      const std::vector<std::string>& words, int32_t mode = M4J_LOGITS_ALL) {
    Batch batch({first, second}, {{1, 2, 3}, {4, 5}}, mode, V);
    const StateCopy first_before = read_state(states, first, tiny), second_before = read_state(states, second, tiny);
    change(batch.args_, batch);
    expect_error(m4j_advance(states.get(), batch.args(), &err), M4J_ERR_INVALID_ARGUMENT, words);
    EXPECT_EQ(read_state(states, first, tiny), first_before);
    EXPECT_EQ(read_state(states, second, tiny), second_before);
    for (const float x : batch.logits) ASSERT_TRUE(std::isnan(x));
  }
};

TEST_F(ApiAdvanceTest, BadArgumentsAreNamedAndNothingChanges) {
  advance(states, {first, second}, {{7, 8}, {9}}, V);
  expect_refused([](auto& a, Batch&) { a.struct_size = 8; }, {"args", "struct_size"});
  expect_refused([](auto& a, Batch&) { a.reserved = 1; }, {"args.reserved"});
  expect_refused([](auto& a, Batch&) { a.n_seqs = 0; }, {"args.n_seqs", "0"});
  expect_refused([](auto& a, Batch&) { a.n_seqs = -3; }, {"args.n_seqs", "-3"});
  expect_refused([](auto& a, Batch&) { a.slots = nullptr; }, {"args.slots"});
  expect_refused([](auto& a, Batch&) { a.tokens = nullptr; }, {"args.tokens"});
  expect_refused([](auto& a, Batch&) { a.offsets = nullptr; }, {"args.offsets"});
  expect_refused([](auto&, Batch& b) { b.offsets[0] = 1; }, {"offsets[0]", "1"});
  expect_refused([](auto&, Batch& b) { b.offsets[1] = 0; }, {"offsets[1]", "0"});   // an empty sequence
  expect_refused([](auto&, Batch& b) { b.offsets[2] = 3; }, {"offsets[2]", "3"});
  expect_refused([](auto&, Batch& b) { b.offsets[1] = -1; }, {"offsets[1]", "-1"});
  expect_refused([](auto&, Batch& b) { b.tokens[4] = 37; }, {"tokens[4]", "37", "vocab_size 37"});
  expect_refused([](auto&, Batch& b) { b.tokens[0] = -1; }, {"tokens[0]", "-1"});
  expect_refused([](auto&, Batch& b) { b.tokens[2] = INT32_MIN; }, {"tokens[2]", "-2147483648"});
  expect_refused([](auto& a, Batch&) { a.logits_mode = 3; }, {"logits_mode", "3"});
  expect_refused([](auto& a, Batch&) { a.logits_mode = -1; }, {"logits_mode", "-1"});
  expect_refused([](auto& a, Batch&) { a.logits = nullptr; }, {"args.logits"});
  expect_refused([](auto& a, Batch&) { a.logits = reinterpret_cast<float*>(reinterpret_cast<char*>(a.logits) + 2); },
                 {"args.logits", "aligned"});
  expect_refused([](auto& a, Batch&) { --a.logits_capacity; }, {"logits_capacity", "5 rows of 37"});
  expect_refused([](auto& a, Batch&) { --a.logits_capacity; }, {"logits_capacity", "2 rows of 37"}, M4J_LOGITS_LAST);
  expect_refused([](auto&, Batch& b) { b.slots[1] = b.slots[0]; }, {"slots[1]", "twice"});
  expect_error(m4j_advance(states.get(), nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"args"});
}

TEST_F(ApiAdvanceTest, NoLogitsNeedsNoBuffer) {
  Batch batch({first}, {{1, 2, 3}}, M4J_LOGITS_NONE, V);
  batch.args_.logits = nullptr;
  ASSERT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
  EXPECT_EQ(read_state(states, first, tiny).position, 3);
}

TEST_F(ApiAdvanceTest, StepsAllocateNothing) {
  advance(states, {first, second}, {{1}, {2}}, V);
  const int64_t before = m4j_native_bytes();
  for (int i = 0; i < 10; ++i) advance(states, {first, second}, {{3}, {4}}, V);
  EXPECT_EQ(m4j_native_bytes(), before);
}

}  // namespace
}  // namespace m4j::test
