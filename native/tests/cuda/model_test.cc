// Whole models on the GPU against the CPU: logits, states, splits, batches, graphs, snapshots that change sides.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "ops/half.h"
#include "support/api_test.h"

namespace m4j::test {
namespace {

std::vector<TinyOptions> all_options() {
  std::vector<TinyOptions> all;
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      all.push_back({.family = family, .dtype = dtype, .even = true});
      all.push_back({.family = family, .dtype = dtype, .biases = false, .tied = true, .n_groups = 1, .even = true});
    }
    all.push_back({.family = family, .d_conv = 2, .even = true});
  }
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      all.push_back({.family = family, .dtype = dtype, .even = true, .wide = true});
    }
  }
  all.push_back({.family = M4J_MAMBA2, .dtype = DType::kBF16, .biases = false, .n_groups = 1, .even = true,
                 .wide = true});
  all.push_back({.family = M4J_MAMBA2, .dt_min = 0.1f, .dt_max = 0.3f, .even = true});
  return all;
}

class CudaModel : public ApiTest, public ::testing::WithParamInterface<TinyOptions> {
 protected:
  // Activations are rounded to the weights' dtype on the GPU.
  double tolerance() const { return GetParam().dtype == DType::kF32 ? 1e-4 : GetParam().dtype == DType::kF16 ? 5e-3 : 2e-2; }

  void expect_near(const std::vector<float>& actual, const std::vector<float>& expected, double tolerances = 1) const {
    ASSERT_EQ(actual.size(), expected.size());
    EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), tolerances * tolerance());
  }
  void expect_near(const StateCopy& actual, const StateCopy& expected) const {
    EXPECT_EQ(actual.position, expected.position);
    expect_near(actual.conv, expected.conv);
    expect_near(actual.ssm, expected.ssm);
  }

  TinyModel tiny{GetParam(), run_seed()};
  const int64_t V = tiny.config.vocab_size;
  std::vector<Tokens> sequences(std::vector<int64_t> lengths) {
    std::vector<Tokens> result;
    for (const int64_t n : lengths) result.push_back(random.ids(n, static_cast<int32_t>(V)));
    return result;
  }
  void steps_equal_the_cpu();
};

struct Side {
  EnginePtr engine;
  ModelPtr model;
  StatesPtr states;
  Side(EnginePtr e, TinyModel& tiny) : engine(std::move(e)), model(make_model(engine, tiny)), states(make_states(model)) {}
};

// Steps of few sequences take a kernel of their own.
void CudaModel::steps_equal_the_cpu() {
  Side cpu(make_engine(), tiny), gpu(make_gpu_engine(), tiny);
  for (int64_t count = 1; count <= 5; ++count) {
    std::vector<m4j_slot> cpu_slots, gpu_slots, again;
    for (int64_t i = 0; i < count; ++i) {
      cpu_slots.push_back(take(cpu.states));
      gpu_slots.push_back(take(gpu.states));
      again.push_back(take(gpu.states));
    }
    for (int step = 0; step < 4; ++step) {
      const std::vector<Tokens> input = sequences(std::vector<int64_t>(static_cast<size_t>(count), 1));
      const auto expected = advance(cpu.states, cpu_slots, input, V), actual = advance(gpu.states, gpu_slots, input, V);
      for (size_t i = 0; i < input.size(); ++i) expect_near(actual[i], expected[i]);
      if (step % 2 != 0) {
        EXPECT_EQ(advance(gpu.states, again, input, V), actual);
        continue;
      }
      // Without logits less is computed, but the states are the same.
      Batch batch(again, input, M4J_LOGITS_NONE, V);
      ASSERT_EQ(m4j_advance(gpu.states.get(), batch.args(), &err), M4J_OK) << err.message;
      for (size_t i = 0; i < input.size(); ++i) {
        EXPECT_EQ(read_state(gpu.states, again[i], tiny), read_state(gpu.states, gpu_slots[i], tiny));
      }
    }
    for (size_t i = 0; i < cpu_slots.size(); ++i) {
      const StateCopy state = read_state(gpu.states, gpu_slots[i], tiny);
      expect_near(state, read_state(cpu.states, cpu_slots[i], tiny));
      EXPECT_EQ(read_state(gpu.states, again[i], tiny), state);
    }
  }
}

TEST_P(CudaModel, StepsOfFewSequencesEqualTheCpu) { steps_equal_the_cpu(); }

TEST_P(CudaModel, RaggedBatchesEqualTheCpu) {
  Side cpu(make_engine(), tiny), gpu(make_gpu_engine(), tiny);
  std::vector<m4j_slot> cpu_slots, gpu_slots;
  for (int i = 0; i < 5; ++i) {
    cpu_slots.push_back(take(cpu.states));
    gpu_slots.push_back(take(gpu.states));
  }
  // Prefill, a mixed batch, decode, decode of other sequences, prefill again.
  const std::vector<std::vector<int64_t>> calls = {{67, 1, 130, 3, 700}, {1, 9, 1, 2, 1}, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}, {5, 300, 1, 64, 2}};
  for (const auto& lengths : calls) {
    const std::vector<Tokens> input = sequences(lengths);
    const auto expected = advance(cpu.states, cpu_slots, input, V), actual = advance(gpu.states, gpu_slots, input, V);
    // What a state lost to rounding a single token may show enlarged, where its terms cancel: the CPU does so too when it
    // goes on from the GPU's state.
    for (size_t i = 0; i < input.size(); ++i) expect_near(actual[i], expected[i], 5);
    expect_near(joined(actual), joined(expected));
  }
  for (size_t i = 0; i < cpu_slots.size(); ++i) {
    expect_near(read_state(gpu.states, gpu_slots[i], tiny), read_state(cpu.states, cpu_slots[i], tiny));
  }
}

TEST_P(CudaModel, EverySplitEqualsTheWhole) {
  Side gpu(make_gpu_engine(), tiny);
  const m4j_slot whole_slot = take(gpu.states), slot = take(gpu.states);
  const Tokens tokens = sequences({133})[0];
  const auto whole = advance(gpu.states, {whole_slot}, {tokens}, V)[0];
  for (const std::vector<int64_t>& cuts : {std::vector<int64_t>{1, 133}, {2, 3, 133}, {64, 133}, {65, 66, 130, 133}, {132, 133}}) {
    ASSERT_EQ(m4j_slot_reset(gpu.states.get(), slot, &err), M4J_OK) << err.message;
    std::vector<float> logits;
    int64_t begin = 0;
    for (const int64_t end : cuts) {
      const auto part = advance(gpu.states, {slot}, {{tokens.begin() + begin, tokens.begin() + end}}, V)[0];
      logits.insert(logits.end(), part.begin(), part.end());
      begin = end;
    }
    expect_near(logits, whole);
    expect_near(read_state(gpu.states, slot, tiny), read_state(gpu.states, whole_slot, tiny));
  }
}

TEST_P(CudaModel, ALongSequenceIsCutIntoBlocks) {
  Side cpu(make_engine(), tiny), gpu(make_gpu_engine(), tiny);
  const m4j_slot cpu_slot = take(cpu.states), gpu_slot = take(gpu.states);
  const std::vector<Tokens> input = sequences({17001});
  Batch expected({cpu_slot}, input, M4J_LOGITS_LAST, V), actual({gpu_slot}, input, M4J_LOGITS_LAST, V);
  ASSERT_EQ(m4j_advance(cpu.states.get(), expected.args(), &err), M4J_OK) << err.message;
  ASSERT_EQ(m4j_advance(gpu.states.get(), actual.args(), &err), M4J_OK) << err.message;
  expect_near(actual.logits, expected.logits);
  expect_near(read_state(gpu.states, gpu_slot, tiny), read_state(cpu.states, cpu_slot, tiny));
}

TEST_P(CudaModel, RunsRepeat) {
  Side gpu(make_gpu_engine(), tiny);
  const m4j_slot a = take(gpu.states), b = take(gpu.states);
  for (const int64_t length : {500, 1, 1, 7}) {
    const std::vector<Tokens> input = sequences({length});
    EXPECT_EQ(advance(gpu.states, {a}, input, V), advance(gpu.states, {b}, input, V));
  }
  EXPECT_EQ(read_state(gpu.states, a, tiny), read_state(gpu.states, b, tiny));
}

// The workspace grows after a step has been captured as a graph, perhaps at its old address.
TEST_P(CudaModel, StepsBetweenLongerAndLongerPrompts) {
  Side cpu(make_engine(), tiny), gpu(make_gpu_engine(), tiny);
  const m4j_slot cpu_slot = take(cpu.states), gpu_slot = take(gpu.states);
  for (const int64_t length : {1, 30, 1, 300, 1, 5000, 1}) {
    const std::vector<Tokens> input = sequences({length});
    expect_near(advance(gpu.states, {gpu_slot}, input, V)[0], advance(cpu.states, {cpu_slot}, input, V)[0]);
  }
}

// Copies, resets and snapshots; a snapshot from the CPU goes on on the GPU.
TEST_P(CudaModel, StatesMove) {
  Side cpu(make_engine(), tiny), gpu(make_gpu_engine(), tiny);
  const m4j_slot cpu_slot = take(cpu.states), slot = take(gpu.states), copy = take(gpu.states);
  const std::vector<Tokens> prompt = sequences({41}), next = sequences({1});
  advance(cpu.states, {cpu_slot}, prompt, V);
  std::vector<char> snapshot(static_cast<size_t>(m4j_slot_export_size(cpu.model.get())));
  const auto size = static_cast<int64_t>(snapshot.size());
  ASSERT_EQ(m4j_slot_export(cpu.states.get(), cpu_slot, snapshot.data(), size, &err), M4J_OK) << err.message;
  ASSERT_EQ(m4j_slot_import(gpu.states.get(), slot, snapshot.data(), size, &err), M4J_OK) << err.message;
  EXPECT_EQ(read_state(gpu.states, slot, tiny), read_state(cpu.states, cpu_slot, tiny));
  ASSERT_EQ(m4j_slot_copy(gpu.states.get(), copy, slot, &err), M4J_OK) << err.message;
  const auto expected = advance(cpu.states, {cpu_slot}, next, V)[0];
  expect_near(advance(gpu.states, {copy}, next, V)[0], expected);
  expect_near(advance(gpu.states, {slot}, next, V)[0], expected);
  EXPECT_EQ(read_state(gpu.states, slot, tiny), read_state(gpu.states, copy, tiny));
  ASSERT_EQ(m4j_slot_reset(gpu.states.get(), slot, &err), M4J_OK) << err.message;
  const StateCopy zero = read_state(gpu.states, slot, tiny);
  EXPECT_EQ(zero.ssm, std::vector<float>(zero.ssm.size(), 0.0f));
  EXPECT_EQ(zero.position, 0);
}

// States in bfloat16 beside those in float32: prompts, then steps of few sequences, which have a kernel of their own,
// and of more.
TEST_P(CudaModel, Bfloat16States) {
  TinyModel narrow(GetParam(), run_seed());
  narrow.config.state_type = M4J_BF16;
  Side wide(make_gpu_engine(), tiny), gpu(make_gpu_engine(), narrow);
  const auto conv = static_cast<int64_t>(4 * m4j_model_conv_state_size(wide.model.get()));
  EXPECT_EQ(m4j_model_state_bytes(gpu.model.get()) - conv, (m4j_model_state_bytes(wide.model.get()) - conv) / 2);
  EXPECT_EQ(m4j_slot_export_size(gpu.model.get()), m4j_slot_export_size(wide.model.get()));
  // Each layer's state has been rounded so many times, each time by less than 4e-3 of its norm.
  constexpr int kSteps = 20;
  const double allowed = 4e-3 * std::sqrt(kSteps) * static_cast<double>(tiny.config.n_layer) + tolerance();
  for (int64_t count = 1; count <= 6; ++count) {
    std::vector<m4j_slot> wide_slots, slots, again;
    for (int64_t i = 0; i < count; ++i) {
      wide_slots.push_back(take(wide.states));
      slots.push_back(take(gpu.states));
      again.push_back(take(gpu.states));
    }
    for (int step = 0; step < kSteps; ++step) {
      const std::vector<Tokens> input = sequences(std::vector<int64_t>(static_cast<size_t>(count), step == 0 ? 70 : 1));
      const auto expected = advance(wide.states, wide_slots, input, V), actual = advance(gpu.states, slots, input, V);
      EXPECT_EQ(advance(gpu.states, again, input, V), actual);
      for (size_t i = 0; i < input.size(); ++i) {
        EXPECT_LT(relative_error(actual[i], {expected[i].begin(), expected[i].end()}), allowed);
      }
    }
    for (size_t i = 0; i < slots.size(); ++i) {
      const StateCopy state = read_state(gpu.states, slots[i], tiny),
                      exact = read_state(wide.states, wide_slots[i], tiny);
      EXPECT_LT(relative_error(state.ssm, {exact.ssm.begin(), exact.ssm.end()}), allowed);
      EXPECT_EQ(read_state(gpu.states, again[i], tiny), state);
    }
  }
}

// Between pools of both types and back.
TEST_P(CudaModel, SnapshotsOfBfloat16States) {
  TinyModel narrow(GetParam(), run_seed());
  narrow.config.state_type = M4J_BF16;
  Side wide(make_gpu_engine(), tiny), gpu(make_gpu_engine(), narrow);
  const m4j_slot wide_slot = take(wide.states), back = take(wide.states), slot = take(gpu.states),
                 other = take(gpu.states);
  advance(wide.states, {wide_slot}, sequences({41}), V);
  const auto move = [&](const StatesPtr& from, m4j_slot source, const StatesPtr& to, m4j_slot target) {
    std::vector<char> bytes(static_cast<size_t>(m4j_slot_export_size(gpu.model.get())));
    const auto size = static_cast<int64_t>(bytes.size());
    ASSERT_EQ(m4j_slot_export(from.get(), source, bytes.data(), size, &err), M4J_OK) << err.message;
    ASSERT_EQ(m4j_slot_import(to.get(), target, bytes.data(), size, &err), M4J_OK) << err.message;
  };
  move(wide.states, wide_slot, gpu.states, slot);
  const StateCopy exact = read_state(wide.states, wide_slot, tiny), state = read_state(gpu.states, slot, tiny);
  EXPECT_EQ(state.conv, exact.conv);
  EXPECT_EQ(state.position, exact.position);
  for (size_t i = 0; i < state.ssm.size(); ++i) {
    ASSERT_EQ(state.ssm[i], bf16_to_f32(f32_to_bf16(exact.ssm[i]))) << i;
  }
  move(gpu.states, slot, wide.states, back);
  EXPECT_EQ(read_state(wide.states, back, tiny), state);
  move(gpu.states, slot, gpu.states, other);
  EXPECT_EQ(read_state(gpu.states, other, tiny), state);
  ASSERT_EQ(m4j_slot_copy(gpu.states.get(), other, slot, &err), M4J_OK) << err.message;
  const std::vector<Tokens> next = sequences({1});
  EXPECT_EQ(advance(gpu.states, {other}, next, V), advance(gpu.states, {slot}, next, V));
  EXPECT_EQ(read_state(gpu.states, other, tiny), read_state(gpu.states, slot, tiny));
}

INSTANTIATE_TEST_SUITE_P(Models, CudaModel, ::testing::ValuesIn(all_options()),
                         [](const auto& info) { return info.param.name() + (info.param.tied ? "_tied" : ""); });

// Sizes at which only that kernel does something else.
class CudaDecode : public CudaModel {};
TEST_P(CudaDecode, StepsOfFewSequencesEqualTheCpu) { steps_equal_the_cpu(); }

std::vector<TinyOptions> decode_options() {
  std::vector<TinyOptions> all;
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      all.push_back({.family = family, .dtype = dtype, .even = true, .deep = true});
      // More rows of x_proj than multiprocessors, and few enough channels for several sequences.
      all.push_back({.family = family, .dtype = dtype, .d_inner = 1024, .even = true, .deep = true});
    }
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, CudaDecode, ::testing::ValuesIn(decode_options()),
                         [](const auto& info) { return info.param.name(); });

class CudaEngine : public ApiTest {};

TEST_F(CudaEngine, NamesItsDeviceAndCountsItsMemory) {
  const EnginePtr engine = make_gpu_engine();
  EXPECT_STRNE(m4j_engine_device_name(engine.get()), "CPU");
  const int64_t before = m4j_engine_device_bytes(engine.get());
  {
    TinyModel tiny({.even = true}, run_seed());
    const ModelPtr model = make_model(engine, tiny);
    const StatesPtr states = make_states(model);
    take(states);
    EXPECT_GT(m4j_engine_device_bytes(engine.get()), before);
  }
  EXPECT_EQ(m4j_engine_device_bytes(engine.get()), before);
}

// Many sequences of each kind, so that what the pool takes ahead of its needs does not count.
TEST_F(CudaEngine, Bfloat16StatesTakeLessMemory) {
  const EnginePtr engine = make_gpu_engine();
  for (const int32_t type : {M4J_F32, M4J_BF16}) {
    TinyModel tiny({.family = M4J_MAMBA2, .even = true, .wide = true}, run_seed());
    tiny.config.state_type = type;
    const ModelPtr model = make_model(engine, tiny);
    const StatesPtr states = make_states(model);
    const int64_t before = m4j_engine_device_bytes(engine.get());
    constexpr int64_t kBytes = 512 << 20, kAhead = 64 << 20, kGap = 256;
    const int64_t bytes = m4j_model_state_bytes(model.get()), count = kBytes / bytes;
    for (int64_t i = 0; i < count; ++i) take(states);
    const int64_t taken = m4j_engine_device_bytes(engine.get()) - before;
    EXPECT_GE(taken, count * bytes - kAhead);
    EXPECT_LE(taken, count * (bytes + kGap) + kAhead);
  }
}

TEST_F(CudaEngine, OddDimensionsAreRefused) {
  const EnginePtr engine = make_gpu_engine();
  TinyModel tiny({}, run_seed());
  m4j_model* model = nullptr;
  expect_error(m4j_model_create(engine.get(), &tiny.config, &tiny.weights(), &model, &err), M4J_ERR_UNSUPPORTED,
               {"d_inner", "43", "multiple of 8"});
}

// Engines on one GPU share its kernels' settings, and launch them with other sizes at the same time.
TEST_F(CudaEngine, EnginesOnOneGpuComputeAtOnce) {
  TinyModel tiny({.dtype = DType::kBF16, .even = true, .wide = true}, run_seed());
  const int64_t V = tiny.config.vocab_size;
  struct User {
    EnginePtr engine;
    ModelPtr model;
    StatesPtr states;
    m4j_slot slot;
    Tokens text;
    std::vector<float> expected;
  };
  std::vector<User> users;
  for (const int64_t length : {24, 48, 8}) {
    User u{make_gpu_engine(), nullptr, nullptr, 0, random.ids(length, static_cast<int32_t>(V)), {}};
    u.model = make_model(u.engine, tiny);
    u.states = make_states(u.model);
    u.slot = take(u.states);
    u.expected = advance(u.states, {u.slot}, {u.text}, V)[0];
    users.push_back(std::move(u));
  }
  std::vector<std::thread> threads;
  for (const User& u : users) {
    threads.emplace_back([&u, V] {
      m4j_error error{};
      for (int i = 0; i < 200 && !HasFailure(); ++i) {
        ASSERT_EQ(m4j_slot_reset(u.states.get(), u.slot, &error), M4J_OK) << error.message;
        EXPECT_EQ(advance(u.states, {u.slot}, {u.text}, V)[0], u.expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// What a prompt, another model and states ask of a full card: errors that say so, and the model goes on.
TEST_F(CudaEngine, OutOfMemoryLeavesTheModelUsable) {
  const EnginePtr engine = make_gpu_engine();
  TinyModel tiny({.family = M4J_MAMBA2, .even = true, .wide = true}, run_seed());
  const ModelPtr model = make_model(engine, tiny);
  const StatesPtr states = make_states(model);
  const m4j_slot slot = take(states), other = take(states);
  const int64_t V = tiny.config.vocab_size;
  const auto before = advance(states, {slot}, {{1, 2, 3, 4, 5}}, V)[0], step = advance(states, {slot}, {{6}}, V)[0];
  struct Ballast : std::vector<void*> {  // all but little of the card's memory
    ~Ballast() {
      for (void* p : *this) cudaFree(p);
    }
  } ballast;
  for (std::size_t size = std::size_t{1} << 34; size >= std::size_t{1} << 20;) {
    void* p = nullptr;
    if (cudaMalloc(&p, size) == cudaSuccess) {
      ballast.push_back(p);
    } else {
      cudaGetLastError();
      size /= 2;
    }
  }
  Batch prompt({other}, {random.ids(20000, static_cast<int32_t>(V))}, M4J_LOGITS_LAST, V);
  expect_error(m4j_advance(states.get(), prompt.args(), &err), M4J_ERR_OUT_OF_MEMORY, {"GPU memory", "workspace"});
  int64_t position = -1;
  EXPECT_EQ(m4j_slot_position(states.get(), other, &position, &err), M4J_OK) << err.message;
  EXPECT_EQ(position, 0);
  m4j_model* second = nullptr;
  expect_error(m4j_model_create(engine.get(), &tiny.config, &tiny.weights(), &second, &err), M4J_ERR_OUT_OF_MEMORY,
               {"GPU memory", "weights"});
  m4j_status status = M4J_OK;
  for (int i = 0; i < 100000 && status == M4J_OK; ++i) {
    m4j_slot next = 0;
    status = m4j_slot_take(states.get(), &next, &err);
  }
  expect_error(status, M4J_ERR_OUT_OF_MEMORY, {"GPU memory", "states"});
  ASSERT_EQ(m4j_slot_reset(states.get(), slot, &err), M4J_OK) << err.message;
  EXPECT_EQ(advance(states, {slot}, {{1, 2, 3, 4, 5}}, V)[0], before);
  EXPECT_EQ(advance(states, {slot}, {{6}}, V)[0], step);
}

}  // namespace
}  // namespace m4j::test
