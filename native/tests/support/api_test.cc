#include "support/api_test.h"

#include <cmath>
#include <sstream>

namespace m4j::test {

EnginePtr make_engine(int32_t threads, const char* simd_target, m4j_log_fn log, void* log_user) {
  const m4j_engine_options options{sizeof options, M4J_DEVICE_CPU, 0, threads, 0, simd_target, nullptr, log, log_user};
  m4j_engine* engine = nullptr;
  m4j_error err{};
  EXPECT_EQ(m4j_engine_create(&options, &engine, &err), M4J_OK) << err.message;
  return EnginePtr(engine);
}

void Pause::log(void* pause, int32_t, const char* message) {
  if (std::string(message).find("workspace") == std::string::npos) return;
  static_cast<Pause*>(pause)->inside.set_value();
  static_cast<Pause*>(pause)->go_on.get_future().wait();
}

EnginePtr make_gpu_engine() {
  m4j_engine_options options{};
  options.struct_size = sizeof options;
  options.device = M4J_DEVICE_CUDA;
  m4j_engine* engine = nullptr;
  m4j_error err{};
  EXPECT_EQ(m4j_engine_create(&options, &engine, &err), M4J_OK) << err.message;
  return EnginePtr(engine);
}

ModelPtr make_model(const EnginePtr& engine, TinyModel& tiny) {
  m4j_model* model = nullptr;
  m4j_error err{};
  EXPECT_EQ(m4j_model_create(engine.get(), &tiny.config, &tiny.weights(), &model, &err), M4J_OK) << err.message;
  return ModelPtr(model);
}

StatesPtr make_states(const ModelPtr& model, int64_t max_slots) {
  m4j_states* states = nullptr;
  m4j_error err{};
  EXPECT_EQ(m4j_states_create(model.get(), max_slots, &states, &err), M4J_OK) << err.message;
  return StatesPtr(states);
}

m4j_slot take(const StatesPtr& states) {
  m4j_slot slot = 0;
  m4j_error err{};
  EXPECT_EQ(m4j_slot_take(states.get(), &slot, &err), M4J_OK) << err.message;
  EXPECT_NE(slot, 0u);
  return slot;
}

Batch::Batch(std::vector<m4j_slot> slots_, const std::vector<Tokens>& sequences, int32_t logits_mode,
             int64_t vocab_size)
    : slots(std::move(slots_)), offsets{0} {
  for (const Tokens& s : sequences) {
    tokens.insert(tokens.end(), s.begin(), s.end());
    offsets.push_back(static_cast<int64_t>(tokens.size()));
  }
  const size_t rows = logits_mode == M4J_LOGITS_ALL ? tokens.size() : logits_mode == M4J_LOGITS_LAST ? slots.size() : 0;
  logits.assign(rows * static_cast<size_t>(vocab_size), NAN);
  args_ = {sizeof args_,   static_cast<int64_t>(slots.size()), slots.data(), tokens.data(), offsets.data(), logits_mode, 0,
           logits.data(), static_cast<int64_t>(logits.size()), nullptr, nullptr, nullptr};
}

std::vector<std::vector<float>> advance(const StatesPtr& states, const std::vector<m4j_slot>& slots,
                                        const std::vector<Tokens>& sequences, int64_t vocab_size) {
  Batch batch(slots, sequences, M4J_LOGITS_ALL, vocab_size);
  m4j_error err{};
  EXPECT_EQ(m4j_advance(states.get(), batch.args(), &err), M4J_OK) << err.message;
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < slots.size(); ++i) {
    result.emplace_back(batch.logits.begin() + batch.offsets[i] * vocab_size,
                        batch.logits.begin() + batch.offsets[i + 1] * vocab_size);
  }
  return result;
}

std::vector<float> joined(const std::vector<std::vector<float>>& parts) {
  std::vector<float> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

StateCopy read_state(const StatesPtr& states, m4j_slot slot, const TinyModel& tiny) {
  StateCopy copy;
  copy.conv.assign(static_cast<size_t>(tiny.conv_size()), NAN);
  copy.ssm.assign(static_cast<size_t>(tiny.ssm_size()), NAN);
  m4j_error err{};
  EXPECT_EQ(m4j_slot_read(states.get(), slot, copy.conv.data(), tiny.conv_size(), copy.ssm.data(), tiny.ssm_size(),
                          &err),
            M4J_OK)
      << err.message;
  EXPECT_EQ(m4j_slot_position(states.get(), slot, &copy.position, &err), M4J_OK) << err.message;
  return copy;
}

std::vector<std::string> simd_targets() {
  std::istringstream in(m4j_simd_targets());
  std::vector<std::string> names;
  for (std::string name; in >> name;) names.push_back(name);
  return names;
}

void ApiTest::expect_error(m4j_status status, m4j_status code, const std::vector<std::string>& words) const {
  EXPECT_EQ(status, code) << err.message;
  EXPECT_EQ(err.code, code);
  for (const std::string& word : words) {
    EXPECT_NE(std::string(err.message).find(word), std::string::npos) << "\"" << word << "\" in: " << err.message;
  }
}

}  // namespace m4j::test
