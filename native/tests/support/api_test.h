// Handles that release themselves, and a fixture that finds leaks: whatever a test does, the library's heap is back
// where it was.
#pragma once

#include <gtest/gtest.h>

#include <future>
#include <memory>
#include <string>
#include <vector>

#include "mamba4j.h"
#include "support/tiny_model.h"

namespace m4j::test {

struct Release {
  void operator()(m4j_engine* e) const { m4j_engine_release(e); }
  void operator()(m4j_model* m) const { m4j_model_release(m); }
  void operator()(m4j_states* s) const { m4j_states_release(s); }
};
using EnginePtr = std::unique_ptr<m4j_engine, Release>;
using ModelPtr = std::unique_ptr<m4j_model, Release>;
using StatesPtr = std::unique_ptr<m4j_states, Release>;

// These fail the test and return null if the library refuses.
EnginePtr make_engine(int32_t threads = 2, const char* simd_target = nullptr, m4j_log_fn log = nullptr,
                      void* log_user = nullptr);
EnginePtr make_gpu_engine();
ModelPtr make_model(const EnginePtr& engine, TinyModel& tiny);
StatesPtr make_states(const ModelPtr& model, int64_t max_slots = 0);
m4j_slot take(const StatesPtr& states);

// The log callback of an engine whose first m4j_advance, in which its workspace grows, waits in the middle.
struct Pause {
  static void log(void* pause, int32_t level, const char* message);

  std::promise<void> inside;
  std::promise<void> go_on;
};

using Tokens = std::vector<int32_t>;

// A ragged batch in the shape of m4j_advance_args.
struct Batch {
  Batch(std::vector<m4j_slot> slots, const std::vector<Tokens>& sequences, int32_t logits_mode, int64_t vocab_size);
  const m4j_advance_args* args() {
    return &args_;
  }

  std::vector<m4j_slot> slots;
  Tokens tokens;
  std::vector<int64_t> offsets;
  std::vector<float> logits;  // poisoned

  m4j_advance_args args_;
};

// Logits of all tokens of each sequence, [V] a token.
std::vector<std::vector<float>> advance(const StatesPtr& states, const std::vector<m4j_slot>& slots,
                                        const std::vector<Tokens>& sequences, int64_t vocab_size);

// One behind the other.
std::vector<float> joined(const std::vector<std::vector<float>>& parts);

struct StateCopy {
  std::vector<float> conv, ssm;
  int64_t position = 0;
  bool operator==(const StateCopy&) const = default;
};
StateCopy read_state(const StatesPtr& states, m4j_slot slot, const TinyModel& tiny);

std::vector<std::string> simd_targets();

class ApiTest : public ::testing::Test {
 protected:
  ApiTest() : seed_trace_(__FILE__, __LINE__, "M4J_TEST_SEED=" + std::to_string(run_seed())) {}
  ~ApiTest() override { EXPECT_EQ(m4j_native_bytes(), bytes_before_); }

  // The call failed with `code` and its message names all of `words`.
  void expect_error(m4j_status status, m4j_status code, const std::vector<std::string>& words) const;

  m4j_error err{};
  Random random{run_seed()};

 private:
  const ::testing::ScopedTrace seed_trace_;
  const int64_t bytes_before_ = m4j_native_bytes();
};

}  // namespace m4j::test
