#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "support/api_test.h"

namespace m4j::test {
namespace {

class ApiStatesTest : public ApiTest {
 protected:
  TinyModel tiny{{.family = M4J_MAMBA2}, run_seed()};
  EnginePtr engine = make_engine();
  ModelPtr model = make_model(engine, tiny);
  StatesPtr states = make_states(model);
  int64_t V = tiny.config.vocab_size;

  ~ApiStatesTest() override {
    states.reset();
    model.reset();
    engine.reset();
  }

  Tokens tokens(int64_t n) { return random.ids(n, static_cast<int32_t>(V)); }
  std::vector<char> exported(m4j_slot slot) {
    std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(model.get())), 'x');
    EXPECT_EQ(m4j_slot_export(states.get(), slot, bytes.data(), static_cast<int64_t>(bytes.size()), &err), M4J_OK)
        << err.message;
    return bytes;
  }
  m4j_status import(m4j_slot slot, const std::vector<char>& bytes) {
    return m4j_slot_import(states.get(), slot, bytes.data(), static_cast<int64_t>(bytes.size()), &err);
  }
};

TEST_F(ApiStatesTest, SizesFollowFromTheDimensions) {
  EXPECT_EQ(m4j_model_conv_state_size(model.get()), tiny.conv_size());
  EXPECT_EQ(m4j_model_ssm_state_size(model.get()), tiny.ssm_size());
  EXPECT_EQ(m4j_model_state_bytes(model.get()), 4 * (tiny.conv_size() + tiny.ssm_size()));
}

TEST_F(ApiStatesTest, SlotsTakeMemoryOnlyWhileTaken) {
  const m4j_slot first = take(states);  // the pool's own table grows once
  const int64_t before = m4j_native_bytes();
  ASSERT_EQ(m4j_slot_release(states.get(), first, &err), M4J_OK);
  EXPECT_EQ(before - m4j_native_bytes(), m4j_model_state_bytes(model.get()));
}

TEST_F(ApiStatesTest, TakenSlotIsZeroedWhateverWasThereBefore) {
  const m4j_slot used = take(states);
  advance(states, {used}, {tokens(5)}, V);
  ASSERT_EQ(m4j_slot_release(states.get(), used, &err), M4J_OK);
  const StateCopy fresh = read_state(states, take(states), tiny);
  EXPECT_EQ(fresh.conv, std::vector<float>(fresh.conv.size(), 0.0f));
  EXPECT_EQ(fresh.ssm, std::vector<float>(fresh.ssm.size(), 0.0f));
  EXPECT_EQ(fresh.position, 0);
}

TEST_F(ApiStatesTest, StaleHandleIsRefusedByEveryCall) {
  const m4j_slot stale = take(states);
  ASSERT_EQ(m4j_slot_release(states.get(), stale, &err), M4J_OK);
  const m4j_slot next = take(states);  // most likely in the same place
  EXPECT_NE(next, stale);
  const StatesPtr others = make_states(model);
  const m4j_slot foreign = take(others);
  const StateCopy before = read_state(states, next, tiny);

  std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(model.get())));
  const int64_t size = static_cast<int64_t>(bytes.size());
  int64_t position = -7;
  for (const m4j_slot bad : {stale, foreign, m4j_slot{0}, m4j_slot{0xffffffffffffffff}, next + 1}) {
    m4j_states* s = states.get();
    expect_error(m4j_slot_release(s, bad, &err), M4J_ERR_STALE_SLOT, {"slot"});
    expect_error(m4j_slot_reset(s, bad, &err), M4J_ERR_STALE_SLOT, {"slot"});
    expect_error(m4j_slot_copy(s, bad, next, &err), M4J_ERR_STALE_SLOT, {"target"});
    expect_error(m4j_slot_copy(s, next, bad, &err), M4J_ERR_STALE_SLOT, {"source"});
    expect_error(m4j_slot_position(s, bad, &position, &err), M4J_ERR_STALE_SLOT, {"slot"});
    expect_error(m4j_slot_export(s, bad, bytes.data(), size, &err), M4J_ERR_STALE_SLOT, {"slot"});
    expect_error(m4j_slot_import(s, bad, bytes.data(), size, &err), M4J_ERR_STALE_SLOT, {"slot"});
    expect_error(m4j_slot_read(s, bad, nullptr, 0, nullptr, 0, &err), M4J_ERR_STALE_SLOT, {"slot"});
    Batch batch({next, bad}, {tokens(2), tokens(3)}, M4J_LOGITS_ALL, V);
    expect_error(m4j_advance(s, batch.args(), &err), M4J_ERR_STALE_SLOT, {"slots[1]"});
  }
  EXPECT_EQ(position, -7);
  EXPECT_EQ(read_state(states, next, tiny), before);
}

TEST_F(ApiStatesTest, HandlesOfManyGenerationsDiffer) {
  std::set<m4j_slot> seen;
  for (int i = 0; i < 100; ++i) {
    const m4j_slot a = take(states), b = take(states);
    EXPECT_TRUE(seen.insert(a).second);
    EXPECT_TRUE(seen.insert(b).second);
    ASSERT_EQ(m4j_slot_release(states.get(), a, &err), M4J_OK);
    ASSERT_EQ(m4j_slot_release(states.get(), b, &err), M4J_OK);
  }
}

TEST_F(ApiStatesTest, PoolHoldsItsLimit) {
  const auto small = make_states(model, 2);
  const m4j_slot first = take(small);
  take(small);
  m4j_slot third = 99;
  expect_error(m4j_slot_take(small.get(), &third, &err), M4J_ERR_EXHAUSTED, {"2"});
  EXPECT_EQ(third, 99u);
  ASSERT_EQ(m4j_slot_release(small.get(), first, &err), M4J_OK);
  EXPECT_EQ(m4j_slot_take(small.get(), &third, &err), M4J_OK);
}

TEST_F(ApiStatesTest, ResetStartsAgain) {
  const m4j_slot slot = take(states);
  const Tokens text = tokens(9);
  const auto first = advance(states, {slot}, {text}, V);
  ASSERT_EQ(m4j_slot_reset(states.get(), slot, &err), M4J_OK);
  int64_t position = -1;
  ASSERT_EQ(m4j_slot_position(states.get(), slot, &position, &err), M4J_OK);
  EXPECT_EQ(position, 0);
  EXPECT_EQ(advance(states, {slot}, {text}, V), first);
}

TEST_F(ApiStatesTest, CopyForksASequence) {
  const m4j_slot source = take(states), target = take(states);
  advance(states, {source}, {tokens(6)}, V);
  advance(states, {target}, {tokens(2)}, V);
  ASSERT_EQ(m4j_slot_copy(states.get(), target, source, &err), M4J_OK) << err.message;
  EXPECT_EQ(read_state(states, target, tiny), read_state(states, source, tiny));
  const Tokens more = tokens(3);
  EXPECT_EQ(advance(states, {target}, {more}, V), advance(states, {source}, {more}, V));

  const StateCopy before = read_state(states, source, tiny);
  ASSERT_EQ(m4j_slot_copy(states.get(), source, source, &err), M4J_OK) << err.message;
  EXPECT_EQ(read_state(states, source, tiny), before);
}

TEST_F(ApiStatesTest, ReadTakesEitherHalfAndChecksCapacities) {
  const m4j_slot slot = take(states);
  advance(states, {slot}, {tokens(4)}, V);
  const StateCopy both = read_state(states, slot, tiny);
  std::vector<float> conv(both.conv.size()), ssm(both.ssm.size());
  ASSERT_EQ(m4j_slot_read(states.get(), slot, conv.data(), tiny.conv_size(), nullptr, 0, &err), M4J_OK);
  ASSERT_EQ(m4j_slot_read(states.get(), slot, nullptr, 0, ssm.data(), tiny.ssm_size(), &err), M4J_OK);
  EXPECT_EQ(conv, both.conv);
  EXPECT_EQ(ssm, both.ssm);
  expect_error(m4j_slot_read(states.get(), slot, conv.data(), tiny.conv_size() - 1, nullptr, 0, &err),
               M4J_ERR_INVALID_ARGUMENT, {"conv_capacity", std::to_string(tiny.conv_size())});
  expect_error(m4j_slot_read(states.get(), slot, nullptr, 0, ssm.data(), -1, &err), M4J_ERR_INVALID_ARGUMENT,
               {"ssm_capacity", "-1"});
  float* const odd = reinterpret_cast<float*>(reinterpret_cast<char*>(conv.data()) + 1);
  expect_error(m4j_slot_read(states.get(), slot, odd, tiny.conv_size(), nullptr, 0, &err), M4J_ERR_INVALID_ARGUMENT,
               {"conv", "aligned"});
}

TEST_F(ApiStatesTest, ExportAndImportContinueASequence) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const int64_t d_conv : {1, 4}) {
      TinyModel other({.family = family, .d_conv = d_conv}, run_seed());
      const auto other_model = make_model(engine, other);
      const auto pool = make_states(other_model);
      const m4j_slot slot = take(pool);
      advance(pool, {slot}, {tokens(11)}, V);
      // Bytes of any alignment will do.
      const int64_t size = m4j_slot_export_size(other_model.get());
      std::vector<char> bytes(static_cast<size_t>(size) + 1);
      ASSERT_EQ(m4j_slot_export(pool.get(), slot, bytes.data() + 1, size, &err), M4J_OK) << err.message;

      // Into another pool of another model object with the same weights.
      const auto twin = make_model(engine, other);
      const auto twin_pool = make_states(twin);
      const m4j_slot copy = take(twin_pool);
      ASSERT_EQ(m4j_slot_import(twin_pool.get(), copy, bytes.data() + 1, size, &err), M4J_OK) << err.message;
      EXPECT_EQ(read_state(twin_pool, copy, other), read_state(pool, slot, other));
      const Tokens more = tokens(5);
      EXPECT_EQ(advance(twin_pool, {copy}, {more}, V), advance(pool, {slot}, {more}, V));
    }
  }
}

TEST_F(ApiStatesTest, ImportRefusesDamage) {
  const m4j_slot slot = take(states);
  advance(states, {slot}, {tokens(7)}, V);
  const StateCopy before = read_state(states, slot, tiny);
  const std::vector<char> good = exported(slot);
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<char> bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    ASSERT_EQ(import(slot, bad), M4J_ERR_MISMATCH) << "byte " << i;
  }
  for (size_t size = 0; size < good.size(); size += 13) {
    ASSERT_EQ(import(slot, {good.begin(), good.begin() + static_cast<int64_t>(size)}), size == 0 ? M4J_ERR_INVALID_ARGUMENT
                                                                                               : M4J_ERR_MISMATCH)
        << "cut to " << size;
  }
  std::vector<char> longer = good;
  longer.push_back(0);
  expect_error(import(slot, longer), M4J_ERR_MISMATCH, {"bytes", std::to_string(good.size())});
  expect_error(m4j_slot_import(states.get(), slot, good.data(), -5, &err), M4J_ERR_MISMATCH, {"-5"});
  std::vector<char> foreign = good;
  foreign[0] = 'X';
  expect_error(import(slot, foreign), M4J_ERR_MISMATCH, {"M4JS"});
  std::vector<char> later = good;
  later[4] = 9;
  expect_error(import(slot, later), M4J_ERR_MISMATCH, {"version 9"});
  EXPECT_EQ(read_state(states, slot, tiny), before);
  EXPECT_EQ(import(slot, good), M4J_OK) << err.message;
}

TEST_F(ApiStatesTest, ImportRefusesAnotherModel) {
  TinyModel other({.family = M4J_MAMBA2}, run_seed() + 1);  // same dimensions, other weights
  const auto other_model = make_model(engine, other);
  const auto pool = make_states(other_model);
  const m4j_slot slot = take(pool), mine = take(states);
  std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(other_model.get())));
  ASSERT_EQ(m4j_slot_export(pool.get(), slot, bytes.data(), static_cast<int64_t>(bytes.size()), &err), M4J_OK);
  expect_error(import(mine, bytes), M4J_ERR_MISMATCH, {"fingerprint"});
}

TEST_F(ApiStatesTest, ExportNeedsRoom) {
  const m4j_slot slot = take(states);
  std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(model.get())) - 1);
  expect_error(m4j_slot_export(states.get(), slot, bytes.data(), static_cast<int64_t>(bytes.size()), &err),
               M4J_ERR_INVALID_ARGUMENT, {"capacity", std::to_string(bytes.size() + 1)});
  expect_error(m4j_slot_export(states.get(), slot, nullptr, 1 << 30, &err), M4J_ERR_INVALID_ARGUMENT, {"buffer"});
}

TEST_F(ApiStatesTest, PoolKeepsModelAndEngineAlive) {
  engine.reset();
  model.reset();
  const m4j_slot slot = take(states);
  EXPECT_EQ(advance(states, {slot}, {tokens(3)}, V)[0].size(), static_cast<size_t>(3 * V));
}

TEST_F(ApiStatesTest, NullHandles) {
  m4j_slot slot = 0;
  m4j_states* out = nullptr;
  int64_t position = 0;
  const auto bad = M4J_ERR_INVALID_ARGUMENT;
  expect_error(m4j_states_create(nullptr, 0, &out, &err), bad, {"model"});
  expect_error(m4j_states_create(model.get(), 0, nullptr, &err), bad, {"out"});
  expect_error(m4j_states_create(model.get(), -1, &out, &err), bad, {"max_slots", "-1"});
  expect_error(m4j_slot_take(nullptr, &slot, &err), bad, {"states"});
  expect_error(m4j_slot_take(states.get(), nullptr, &err), bad, {"out"});
  expect_error(m4j_slot_release(nullptr, 1, &err), bad, {"states"});
  expect_error(m4j_slot_reset(nullptr, 1, &err), bad, {"states"});
  expect_error(m4j_slot_copy(nullptr, 1, 2, &err), bad, {"states"});
  expect_error(m4j_slot_position(nullptr, 1, &position, &err), bad, {"states"});
  expect_error(m4j_slot_position(states.get(), take(states), nullptr, &err), bad, {"out"});
  expect_error(m4j_slot_export(nullptr, 1, &slot, 8, &err), bad, {"states"});
  expect_error(m4j_slot_import(nullptr, 1, &slot, 8, &err), bad, {"states"});
  expect_error(m4j_slot_read(nullptr, 1, nullptr, 0, nullptr, 0, &err), bad, {"states"});
  expect_error(m4j_advance(nullptr, nullptr, &err), bad, {"states"});
  EXPECT_EQ(m4j_slot_take(states.get(), &slot, nullptr), M4J_OK);  // err is optional
  EXPECT_EQ(m4j_slot_take(states.get(), nullptr, nullptr), bad);
  EXPECT_EQ(m4j_slot_export_size(nullptr), 0);
}

TEST_F(ApiStatesTest, SlotInUseIsBusyForEveryOtherCall) {
  Pause pause;
  const auto slow_engine = make_engine(2, nullptr, Pause::log, &pause);
  const auto slow_model = make_model(slow_engine, tiny);
  const auto pool = make_states(slow_model);
  const m4j_slot used = take(pool), idle = take(pool);
  const Tokens text = tokens(5);
  std::vector<std::vector<float>> logits;
  std::thread caller([&] { logits = advance(pool, {used}, {text}, V); });
  pause.inside.get_future().wait();

  m4j_states* s = pool.get();
  int64_t position = 0;
  std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(slow_model.get())));
  const int64_t size = static_cast<int64_t>(bytes.size());
  expect_error(m4j_slot_release(s, used, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_reset(s, used, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_copy(s, used, idle, &err), M4J_ERR_BUSY, {"target"});
  expect_error(m4j_slot_copy(s, idle, used, &err), M4J_ERR_BUSY, {"source"});
  expect_error(m4j_slot_position(s, used, &position, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_export(s, used, bytes.data(), size, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_import(s, used, bytes.data(), size, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_read(s, used, nullptr, 0, nullptr, 0, &err), M4J_ERR_BUSY, {"slot"});
  Batch batch({idle, used}, {tokens(1), tokens(1)}, M4J_LOGITS_LAST, V);
  expect_error(m4j_advance(s, batch.args(), &err), M4J_ERR_BUSY, {"slots[1]"});
  // The failed batch let go of the other slot, and other slots may come and go meanwhile.
  EXPECT_EQ(m4j_slot_reset(s, idle, &err), M4J_OK) << err.message;
  for (int i = 0; i < 50; ++i) take(pool);

  pause.go_on.set_value();
  caller.join();
  EXPECT_EQ(m4j_slot_position(s, used, &position, &err), M4J_OK) << err.message;
  EXPECT_EQ(position, 5);
  const m4j_slot again = take(states);
  EXPECT_EQ(logits, advance(states, {again}, {text}, V));
}

}  // namespace
}  // namespace m4j::test
