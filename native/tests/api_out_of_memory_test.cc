// Every allocation of every call refused in turn: M4J_ERR_OUT_OF_MEMORY, nothing changed, nothing leaked.
#include <gtest/gtest.h>

#include <functional>

#include "support/api_test.h"
#include "support/failing_alloc.h"

namespace m4j::test {
namespace {

class ApiOutOfMemoryTest : public ApiTest {
 protected:
  // Lets the first 0, 1, 2... allocations of `call` succeed until it does not fail; how often it failed.
  int fail_in_turn(const std::function<m4j_status()>& call) {
    for (int failures = 0;; ++failures) {
      m4j_status status;
      {
        const FailingAlloc refuse(failures);
        status = call();
      }
      if (status == M4J_OK) return failures;
      expect_error(status, M4J_ERR_OUT_OF_MEMORY, {"memory"});
      if (HasFailure()) return failures;
    }
  }
};

TEST_F(ApiOutOfMemoryTest, HandlesAndSlots) {
  TinyModel tiny({.family = M4J_MAMBA2}, run_seed());
  const m4j_model_weights& weights = tiny.weights();
  m4j_engine* engine = nullptr;
  EXPECT_GE(fail_in_turn([&] { return m4j_engine_create(nullptr, &engine, &err); }), 2);
  const EnginePtr engine_owner(engine);
  m4j_model* model = nullptr;
  EXPECT_GE(fail_in_turn([&] { return m4j_model_create(engine, &tiny.config, &weights, &model, &err); }), 30);
  const ModelPtr model_owner(model);
  m4j_states* states = nullptr;
  EXPECT_GE(fail_in_turn([&] { return m4j_states_create(model, 0, &states, &err); }), 2);
  const StatesPtr states_owner(states);
  for (int i = 0; i < 5; ++i) {
    m4j_slot slot = 77;
    EXPECT_GE(fail_in_turn([&] { return m4j_slot_take(states, &slot, &err); }), 1);
    EXPECT_NE(slot, 77u);
  }
}

TEST_F(ApiOutOfMemoryTest, Advance) {
  TinyModel tiny({.family = M4J_MAMBA1}, run_seed());
  const auto engine = make_engine();
  const auto model = make_model(engine, tiny);
  const auto states = make_states(model);
  const m4j_slot slot = take(states), whole = take(states);
  const int64_t V = tiny.config.vocab_size;
  const Tokens tokens = random.ids(700, static_cast<int32_t>(V));
  std::vector<float> logits;
  size_t begin = 0;
  for (const size_t end : {size_t{1}, size_t{30}, tokens.size()}) {  // each needs a larger workspace than the last
    const StateCopy before = read_state(states, slot, tiny);
    Batch batch({slot}, {{tokens.begin() + static_cast<int64_t>(begin), tokens.begin() + static_cast<int64_t>(end)}},
                M4J_LOGITS_ALL, V);
    {
      const FailingAlloc refuse(0);
      EXPECT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_ERR_OUT_OF_MEMORY);
    }
    EXPECT_EQ(read_state(states, slot, tiny), before);
    for (const float x : batch.logits) ASSERT_TRUE(x != x);
    ASSERT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
    logits.insert(logits.end(), batch.logits.begin(), batch.logits.end());
    begin = end;
  }
  EXPECT_EQ(logits, advance(states, {whole}, {tokens}, V)[0]);
}

TEST_F(ApiOutOfMemoryTest, SsdOnTensorsThatNeedPacking) {
  const auto engine = make_engine();
  constexpr int64_t L = 20, H = 2, P = 3, G = 1, N = 5;
  std::vector<float> x(L * H * P, 1), dt(L * H, 1), a(H, -1), b(L * G * N, 1), c(L * G * N, 1), out(L * H * P, 7);
  // [1, L, ...] with time as the fastest dimension.
  const auto time_fastest = [](std::vector<float>& v, int64_t d2, int64_t d3) {
    return m4j_tensor{v.data(), M4J_F32, 4, {1, L, d2, d3}, {L * d2 * d3, 1, L * d3, L}};
  };
  m4j_ssd_args args{};
  args.struct_size = sizeof args;
  args.chunk_size = 8;
  args.dt_max = 10;
  args.x = time_fastest(x, H, P);
  args.dt = {dt.data(), M4J_F32, 3, {1, L, H}, {L * H, 1, L}};
  args.A = {a.data(), M4J_F32, 1, {H}, {1}};
  args.B = time_fastest(b, G, N);
  args.C = time_fastest(c, G, N);
  args.out = time_fastest(out, H, P);
  m4j_ssd_args failing = args;
  const int failures = fail_in_turn([&] {
    const m4j_status status = m4j_ssd(engine.get(), &failing, &err);
    if (status != M4J_OK) {
      EXPECT_EQ(out, std::vector<float>(out.size(), 7));
    }
    return status;
  });
  EXPECT_GE(failures, 7);
  EXPECT_NE(out, std::vector<float>(out.size(), 7));
}

}  // namespace
}  // namespace m4j::test
