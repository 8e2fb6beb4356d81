#include <dlfcn.h>
#include <gtest/gtest.h>

#include "runtime/team.h"
#include "support/api_test.h"

namespace m4j::test {
namespace {

using ApiEngineTest = ApiTest;

TEST_F(ApiEngineTest, DefaultsFollowTheMachine) {
  m4j_engine* engine = nullptr;
  ASSERT_EQ(m4j_engine_create(nullptr, &engine, &err), M4J_OK) << err.message;
  const EnginePtr owner(engine);
  EXPECT_EQ(m4j_engine_threads(engine), default_thread_count());
  EXPECT_EQ(m4j_engine_simd_target(engine), simd_targets().front());
  EXPECT_GT(m4j_native_bytes(), 0);
}

TEST_F(ApiEngineTest, EveryTargetCanBeForced) {
  EXPECT_EQ(simd_targets().back(), "reference");
  for (const std::string& target : simd_targets()) {
    EXPECT_EQ(m4j_engine_simd_target(make_engine(1, target.c_str()).get()), target);
  }
}

TEST_F(ApiEngineTest, ThreadsAsAsked) {
  for (const int32_t threads : {1, 2, 5}) EXPECT_EQ(m4j_engine_threads(make_engine(threads).get()), threads);
}

TEST_F(ApiEngineTest, BadOptionsAreNamed) {
  m4j_engine* const untouched = reinterpret_cast<m4j_engine*>(16);
  m4j_engine* engine = untouched;
  const m4j_engine_options good{sizeof good, M4J_DEVICE_CPU, 0, 1, 0, nullptr, nullptr, nullptr, nullptr};
  m4j_engine_options bad = good;
  bad.threads = -1;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, {"options.threads", "-1", "1024"});
  bad.threads = 1025;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, {"options.threads", "1025"});
  bad = good;
  bad.struct_size = sizeof good - 1;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, 
               {"options", "struct_size", std::to_string(sizeof good - 1), std::to_string(sizeof good)});
  bad = good;
  bad.device = 7;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, {"options.device", "7", "M4J_DEVICE_CUDA"});
  bad = good;
  bad.device_index = 1;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, {"options.device_index", "1"});
  bad.device = M4J_DEVICE_CUDA;
  bad.device_index = 999;
  const bool has_driver = dlopen("libcuda.so.1", RTLD_LAZY) != nullptr;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_UNSUPPORTED,
               has_driver ? std::vector<std::string>{} : std::vector<std::string>{"no NVIDIA driver", "libcuda.so.1"});
  bad = good;
  bad.reserved = 3;
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_INVALID_ARGUMENT, {"options.reserved", "3"});
  bad = good;
  bad.simd_target = "mmx";
  expect_error(m4j_engine_create(&bad, &engine, &err), M4J_ERR_UNSUPPORTED, {"simd_target", "mmx", m4j_simd_targets()});
  expect_error(m4j_engine_create(&good, nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"out"});
  EXPECT_EQ(engine, untouched);
}

TEST_F(ApiEngineTest, LargerStructsOfALaterHeaderAreTaken) {
  const m4j_engine_options later{sizeof later + 8, M4J_DEVICE_CPU, 0, 1, 0, nullptr, nullptr, nullptr, nullptr};
  m4j_engine* engine = nullptr;
  EXPECT_EQ(m4j_engine_create(&later, &engine, &err), M4J_OK) << err.message;
  m4j_engine_release(engine);
}

TEST_F(ApiEngineTest, LongMessagesAreCutBetweenCharacters) {
  const std::string euro = "\xe2\x82\xac";
  for (int shift = 0; shift < 3; ++shift) {
    std::string target(static_cast<size_t>(shift), 'x');
    while (target.size() < 600) target += euro;
    const m4j_engine_options options{sizeof options, M4J_DEVICE_CPU, 0, 1, 0, target.c_str(), nullptr, nullptr, nullptr};
    m4j_engine* engine = nullptr;
    expect_error(m4j_engine_create(&options, &engine, &err), M4J_ERR_UNSUPPORTED, {euro});
    const std::string message = err.message;
    EXPECT_GT(message.size(), sizeof err.message - 5);
    EXPECT_EQ(message.substr(message.size() - 3), euro);
  }
}

TEST_F(ApiEngineTest, LogReachesTheCallback) {
  std::vector<std::string> messages;
  const auto log = [](void* user, int32_t level, const char* message) {
    EXPECT_GE(level, M4J_LOG_DEBUG);
    EXPECT_LE(level, M4J_LOG_ERROR);
    static_cast<std::vector<std::string>*>(user)->push_back(message);
  };
  const auto engine = make_engine(2, "reference", log, &messages);
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0], "engine with 2 threads on reference");
}

TEST_F(ApiEngineTest, NullHandlesAreHarmless) {
  m4j_engine_release(nullptr);
  m4j_model_release(nullptr);
  m4j_states_release(nullptr);
  EXPECT_EQ(m4j_engine_threads(nullptr), 0);
  EXPECT_STREQ(m4j_engine_simd_target(nullptr), "");
  EXPECT_EQ(m4j_model_state_bytes(nullptr), 0);
  EXPECT_EQ(m4j_model_fingerprint(nullptr), 0u);
}

}  // namespace
}  // namespace m4j::test
