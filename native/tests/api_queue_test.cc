// Asynchronous calls: the same results in the order of submission, slots in use meanwhile, every end of a queue's life.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <set>
#include <thread>

#include "support/api_test.h"
#include "support/sampling.h"

namespace m4j::test {
namespace {

struct ReleaseQueue {
  void operator()(m4j_queue* q) const { m4j_queue_release(q); }
};
using QueuePtr = std::unique_ptr<m4j_queue, ReleaseQueue>;

class ApiQueueTest : public ApiTest {
 protected:
  QueuePtr make_queue(const EnginePtr& engine) {
    m4j_queue* queue = nullptr;
    EXPECT_EQ(m4j_queue_create(engine.get(), &queue, &err), M4J_OK) << err.message;
    return QueuePtr(queue);
  }
  // The tag of the next completion, which is that of a success.
  uint64_t next(const QueuePtr& queue) {
    m4j_completion completion{};
    EXPECT_EQ(m4j_queue_next(queue.get(), -1, &completion, &err), M4J_OK) << err.message;
    EXPECT_EQ(completion.error.code, M4J_OK) << completion.error.message;
    return completion.tag;
  }
  void submit(const QueuePtr& queue, Batch& batch, uint64_t tag) {
    ASSERT_EQ(m4j_queue_advance(queue.get(), states.get(), batch.args(), tag, &err), M4J_OK) << err.message;
  }
  std::vector<Tokens> sequence(int64_t length) { return {random.ids(length, static_cast<int32_t>(V))}; }

  TinyModel tiny{{.family = M4J_MAMBA2}, run_seed()};
  const int64_t V = tiny.config.vocab_size;
  EnginePtr engine = make_engine();
  ModelPtr model = make_model(engine, tiny);
  StatesPtr states = make_states(model);
};

TEST_F(ApiQueueTest, CallsComputeWhatTheyWouldAlone) {
  const QueuePtr queue = make_queue(engine);
  std::vector<m4j_slot> slots, twins;
  std::vector<Batch> batches;
  std::vector<std::vector<Tokens>> inputs;
  for (int64_t i = 0; i < 20; ++i) {
    slots.push_back(take(states));
    twins.push_back(take(states));
    inputs.push_back(sequence(1 + i * 7 % 40));
  }
  batches.reserve(20);
  for (size_t i = 0; i < 20; ++i) {
    batches.emplace_back(std::vector<m4j_slot>{slots[i]}, inputs[i], M4J_LOGITS_ALL, V);
    submit(queue, batches[i], 100 + i);
  }
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(next(queue), 100 + i);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_EQ(batches[i].logits, advance(states, {twins[i]}, inputs[i], V)[0]);
    EXPECT_EQ(read_state(states, slots[i], tiny), read_state(states, twins[i], tiny));
  }
}

// Steps that also choose tokens choose those of calls that wait.
TEST_F(ApiQueueTest, CallsChooseWhatTheyWouldAlone) {
  const QueuePtr queue = make_queue(engine);
  const m4j_slot slot = take(states), twin = take(states);
  const m4j_sampling s = random_sampling(1.3f, 99);
  const m4j_sampling* const how[] = {&s};
  int32_t token = 1, expected = 1;
  float log_prob = 7, expected_log_prob = 7;
  for (uint64_t step = 0; step < 30; ++step) {
    const Tokens input(step == 0 ? 21 : 1, token);
    const auto choosing = [&](m4j_slot at, int32_t* chosen, float* log_prob_of) {
      Batch batch({at}, {input}, M4J_LOGITS_NONE, V);
      batch.args_.samplings = how;
      batch.args_.sampled = chosen;
      batch.args_.log_probs = log_prob_of;
      return batch;
    };
    Batch queued = choosing(slot, &token, &log_prob), waiting = choosing(twin, &expected, &expected_log_prob);
    submit(queue, queued, step);
    EXPECT_EQ(next(queue), step);
    ASSERT_EQ(m4j_advance(states.get(), waiting.args(), &err), M4J_OK) << err.message;
    ASSERT_EQ(token, expected) << "step " << step;
    ASSERT_EQ(log_prob, expected_log_prob) << "step " << step;
  }
}

TEST_F(ApiQueueTest, ASlotInFlightIsBusy) {
  Pause pause;
  const EnginePtr slow_engine = make_engine(2, nullptr, Pause::log, &pause);
  const ModelPtr slow_model = make_model(slow_engine, tiny);
  const StatesPtr pool = make_states(slow_model);
  const QueuePtr queue = make_queue(slow_engine);
  m4j_states* s = pool.get();
  const m4j_slot slot = take(pool);
  Batch slow({slot}, sequence(20), M4J_LOGITS_LAST, V), other({slot}, sequence(1), M4J_LOGITS_LAST, V);
  ASSERT_EQ(m4j_queue_advance(queue.get(), s, slow.args(), 1, &err), M4J_OK) << err.message;
  pause.inside.get_future().wait();
  int64_t position = 0;
  expect_error(m4j_queue_advance(queue.get(), s, other.args(), 2, &err), M4J_ERR_BUSY, {"slots"});
  expect_error(m4j_advance(s, other.args(), &err), M4J_ERR_BUSY, {"slots"});
  expect_error(m4j_slot_position(s, slot, &position, &err), M4J_ERR_BUSY, {"slot"});
  expect_error(m4j_slot_release(s, slot, &err), M4J_ERR_BUSY, {"slot"});
  m4j_completion completion{};
  expect_error(m4j_queue_next(queue.get(), 0, &completion, &err), M4J_ERR_BUSY, {"0 ms"});
  pause.go_on.set_value();
  EXPECT_EQ(next(queue), 1u);
  EXPECT_EQ(m4j_slot_position(s, slot, &position, &err), M4J_OK) << err.message;
  EXPECT_EQ(position, 20);
  ASSERT_EQ(m4j_advance(s, other.args(), &err), M4J_OK) << err.message;
  const auto begin = std::chrono::steady_clock::now();
  expect_error(m4j_queue_next(queue.get(), 30, &completion, &err), M4J_ERR_BUSY, {"30 ms"});
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(30));
}

TEST_F(ApiQueueTest, RefusesWhatAdvanceRefuses) {
  const QueuePtr queue = make_queue(engine);
  const m4j_slot slot = take(states);
  Batch batch({slot}, {{0, 1}}, M4J_LOGITS_LAST, V);
  batch.tokens[1] = static_cast<int32_t>(V);
  expect_error(m4j_queue_advance(queue.get(), states.get(), batch.args(), 1, &err), M4J_ERR_INVALID_ARGUMENT,
               {"args.tokens[1]"});
  batch.tokens[1] = 1;
  batch.slots[0] = 12345;
  expect_error(m4j_queue_advance(queue.get(), states.get(), batch.args(), 1, &err), M4J_ERR_STALE_SLOT, {"0x3039"});
  batch.slots[0] = slot;
  expect_error(m4j_queue_advance(nullptr, states.get(), batch.args(), 1, &err), M4J_ERR_INVALID_ARGUMENT, {"queue"});
  expect_error(m4j_queue_advance(queue.get(), nullptr, batch.args(), 1, &err), M4J_ERR_INVALID_ARGUMENT, {"states"});
  expect_error(m4j_queue_next(queue.get(), 0, nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"out"});
  const EnginePtr elsewhere = make_engine(1);
  const QueuePtr foreign = make_queue(elsewhere);
  expect_error(m4j_queue_advance(foreign.get(), states.get(), batch.args(), 1, &err), M4J_ERR_INVALID_ARGUMENT,
               {"states", "another engine"});
  submit(queue, batch, 7);  // nothing of the above has stayed
  EXPECT_EQ(next(queue), 7u);
}

TEST_F(ApiQueueTest, AClosedQueueEndsInOrder) {
  const QueuePtr queue = make_queue(engine);
  const m4j_slot slot = take(states);
  Batch batch({slot}, sequence(3000), M4J_LOGITS_LAST, V);
  submit(queue, batch, 1);
  m4j_queue_close(queue.get());
  Batch late({take(states)}, sequence(1), M4J_LOGITS_LAST, V);
  expect_error(m4j_queue_advance(queue.get(), states.get(), late.args(), 2, &err), M4J_ERR_EXHAUSTED, {"closed"});
  EXPECT_EQ(next(queue), 1u);
  m4j_completion completion{};
  expect_error(m4j_queue_next(queue.get(), -1, &completion, &err), M4J_ERR_EXHAUSTED, {"closed"});
}

TEST_F(ApiQueueTest, HandlesMayGoWhileACallIsInFlight) {
  Batch batch({take(states)}, sequence(5000), M4J_LOGITS_LAST, V);
  QueuePtr queue = make_queue(engine);
  submit(queue, batch, 1);
  states.reset();
  model.reset();
  engine.reset();
  EXPECT_EQ(next(queue), 1u);
  EXPECT_EQ(std::count_if(batch.logits.begin(), batch.logits.end(), [](float v) { return v != v; }), 0);
}

TEST_F(ApiQueueTest, ReleaseWaitsForWhatIsInFlight) {
  Batch batch({take(states)}, sequence(5000), M4J_LOGITS_LAST, V);
  {
    const QueuePtr queue = make_queue(engine);
    submit(queue, batch, 1);
  }
  EXPECT_EQ(std::count_if(batch.logits.begin(), batch.logits.end(), [](float v) { return v != v; }), 0);
}

// Threads submit, others take completions; each call is completed once.
TEST_F(ApiQueueTest, AnyNumberOfThreads) {
  constexpr int kSubmitters = 3, kTakers = 2, kCalls = 40;
  const QueuePtr queue = make_queue(engine);
  std::vector<std::thread> threads;
  std::vector<std::set<uint64_t>> taken(kTakers);
  for (int t = 0; t < kTakers; ++t) {
    threads.emplace_back([&, t] {
      m4j_completion completion{};
      m4j_error error{};
      while (m4j_queue_next(queue.get(), -1, &completion, &error) == M4J_OK) {
        EXPECT_EQ(completion.error.code, M4J_OK);
        EXPECT_TRUE(taken[static_cast<size_t>(t)].insert(completion.tag).second);
      }
      EXPECT_EQ(error.code, M4J_ERR_EXHAUSTED);
    });
  }
  std::vector<Batch> batches;
  for (int i = 0; i < kSubmitters * kCalls; ++i) {
    batches.emplace_back(std::vector<m4j_slot>{take(states)}, sequence(3), M4J_LOGITS_LAST, V);
  }
  std::vector<std::thread> submitters;
  for (int s = 0; s < kSubmitters; ++s) {
    submitters.emplace_back([&, s] {
      for (int i = 0; i < kCalls; ++i) {
        m4j_error error{};
        const auto tag = static_cast<uint64_t>(s * kCalls + i);
        EXPECT_EQ(m4j_queue_advance(queue.get(), states.get(), batches[tag].args(), tag, &error), M4J_OK);
      }
    });
  }
  for (std::thread& t : submitters) t.join();
  m4j_queue_close(queue.get());
  for (std::thread& t : threads) t.join();
  std::set<uint64_t> all;
  for (const auto& tags : taken) all.insert(tags.begin(), tags.end());
  EXPECT_EQ(all.size(), batches.size());
  EXPECT_EQ(taken[0].size() + taken[1].size(), batches.size());
}

}  // namespace
}  // namespace m4j::test
