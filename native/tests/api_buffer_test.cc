// Memory of an engine's device and copies, on the CPU.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "ops/half.h"
#include "support/api_test.h"
#include "support/strided.h"

namespace m4j::test {
namespace {

class ApiBufferTest : public ApiTest {
 protected:
  const EnginePtr engine = make_engine(2);
};

TEST_F(ApiBufferTest, AreZeroedAlignedCountedAndOutliveTheirEngine) {
  const int64_t before = m4j_native_bytes();
  EnginePtr own = make_engine(1);
  m4j_buffer* buffer = nullptr;
  ASSERT_EQ(m4j_buffer_create(own.get(), 1001, &buffer, &err), M4J_OK) << err.message;
  EXPECT_GE(m4j_native_bytes(), before + 1001);
  own.reset();
  auto* data = static_cast<char*>(m4j_buffer_data(buffer));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 64, 0u);
  EXPECT_EQ(std::count(data, data + 1001, 0), 1001);
  std::memset(data, 1, 1001);
  m4j_buffer_release(buffer);
  EXPECT_EQ(m4j_native_bytes(), before);

  ASSERT_EQ(m4j_buffer_create(engine.get(), 0, &buffer, &err), M4J_OK) << err.message;
  EXPECT_EQ(m4j_buffer_data(buffer), nullptr);
  m4j_buffer_release(buffer);
  m4j_buffer_release(nullptr);
  EXPECT_EQ(m4j_buffer_data(nullptr), nullptr);
}

TEST_F(ApiBufferTest, SayWhatCannotBe) {
  m4j_buffer* buffer = nullptr;
  expect_error(m4j_buffer_create(engine.get(), -1, &buffer, &err), M4J_ERR_INVALID_ARGUMENT, {"bytes", "-1"});
  expect_error(m4j_buffer_create(engine.get(), INT64_MAX, &buffer, &err), M4J_ERR_OUT_OF_MEMORY,
               {"9223372036854.8 MB"});
  EXPECT_EQ(buffer, nullptr);
  char bytes[8] = {};
  expect_error(m4j_copy_bytes(engine.get(), bytes, bytes + 3, 4, M4J_ON_DEVICE, &err), M4J_ERR_INVALID_ARGUMENT,
               {"overlap"});
  expect_error(m4j_copy_bytes(engine.get(), nullptr, bytes, 4, M4J_TO_HOST, &err), M4J_ERR_INVALID_ARGUMENT, {"to"});
  expect_error(m4j_copy_bytes(engine.get(), bytes, nullptr, 4, M4J_TO_DEVICE, &err), M4J_ERR_INVALID_ARGUMENT,
               {"from"});
  expect_error(m4j_copy_bytes(engine.get(), bytes, bytes + 4, -4, M4J_TO_HOST, &err), M4J_ERR_INVALID_ARGUMENT,
               {"bytes"});
  EXPECT_EQ(m4j_copy_bytes(engine.get(), nullptr, nullptr, 0, M4J_TO_HOST, &err), M4J_OK);
  expect_error(m4j_copy_bytes(engine.get(), bytes, bytes + 4, 4, 3, &err), M4J_ERR_INVALID_ARGUMENT,
               {"direction", "3"});
}

TEST_F(ApiBufferTest, CopyBytes) {
  const std::vector<float> from = random.normal(1000);
  std::vector<float> to(1000);
  ASSERT_EQ(m4j_copy_bytes(engine.get(), to.data(), from.data(), 4000, M4J_TO_DEVICE, &err), M4J_OK) << err.message;
  EXPECT_EQ(to, from);
}

TEST_F(ApiBufferTest, CopyTakesAnyStrides) {
  for (const std::vector<int64_t>& shape : {std::vector<int64_t>{7}, {3, 5}, {2, 3, 11}, {3, 1, 4, 5}}) {
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    const auto values = random.normal(count);
    for (const Order from : kOrders) {
      for (const Order to : kOrders) {
        const Strided x(shape, values, from), out(shape, {}, to);
        ASSERT_EQ(m4j_copy(engine.get(), &x.tensor(), &out.tensor(), &err), M4J_OK) << err.message;
        EXPECT_EQ(out.values(), values);
        EXPECT_TRUE(out.gaps_untouched());
      }
    }
  }
}

TEST_F(ApiBufferTest, CopyRoundsToNearest) {
  const auto values = random.normal(100);
  for (const int32_t dtype : {M4J_F16, M4J_BF16}) {
    std::vector<uint16_t> half(100);
    std::vector<float> back(100);
    const m4j_tensor x{const_cast<float*>(values.data()), M4J_F32, 1, {100}, {1}},
        middle{half.data(), dtype, 1, {100}, {1}}, out{back.data(), M4J_F32, 1, {100}, {1}};
    ASSERT_EQ(m4j_copy(engine.get(), &x, &middle, &err), M4J_OK) << err.message;
    ASSERT_EQ(m4j_copy(engine.get(), &middle, &out, &err), M4J_OK) << err.message;
    for (size_t i = 0; i < 100; ++i) {
      EXPECT_EQ(half[i], dtype == M4J_F16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]));
      EXPECT_EQ(back[i], dtype == M4J_F16 ? f16_to_f32(half[i]) : bf16_to_f32(half[i]));
    }
  }
}

TEST_F(ApiBufferTest, CopyRefusesWhatIsNoCopy) {
  std::vector<float> a(24), b(24);
  m4j_tensor x{a.data(), M4J_F32, 2, {4, 6}, {6, 1}}, out{b.data(), M4J_F32, 2, {6, 4}, {4, 1}};
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_INVALID_ARGUMENT, {"out", "[6, 4]", "d0=4"});
  out = {b.data(), M4J_F32, 1, {24}, {1}};
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_INVALID_ARGUMENT, {"out", "rank"});
  out = {b.data(), M4J_F32, 2, {4, 6}, {0, 1}};
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_INVALID_ARGUMENT, {"out", "share memory"});
  out = {a.data() + 1, M4J_F32, 2, {4, 6}, {6, 1}};
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_INVALID_ARGUMENT, {"out", "overlaps"});
  out = {b.data(), M4J_Q8_0, 2, {4, 6}, {6, 1}};
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_UNSUPPORTED, {"out", "Q8_0"});
  x.rank = 9;
  expect_error(m4j_copy(engine.get(), &x, &out, &err), M4J_ERR_INVALID_ARGUMENT, {"x", "rank is 9"});
}

}  // namespace
}  // namespace m4j::test
