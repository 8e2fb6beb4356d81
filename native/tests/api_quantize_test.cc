// Quantised tensors at the boundary: what m4j_quantize and the operations and models take, and what they refuse.
#include <gtest/gtest.h>

#include <cmath>

#include "ops/ops.h"
#include "support/api_test.h"

namespace m4j::test {
namespace {

constexpr int64_t kRows = 7, kIn = 64;

m4j_tensor matrix(void* data, int32_t dtype, int64_t rows = kRows, int64_t in = kIn) {
  return {data, dtype, 2, {rows, in}, {in, 1}};
}

class ApiQuantizeTest : public ApiTest {
 protected:
  ~ApiQuantizeTest() override { engine.reset(); }

  EnginePtr engine = make_engine(2);
  std::vector<float> weights = random.normal(kRows * kIn);
  std::vector<uint8_t> blocks = std::vector<uint8_t>(static_cast<size_t>(dtype_bytes(DType::kQ8_0, kRows * kIn)));
};

TEST_F(ApiQuantizeTest, ThreadsDoNotMatter) {
  for (const int32_t dtype : {M4J_Q8_0, M4J_Q4_0}) {
    std::vector<uint8_t> first;
    for (const int32_t threads : {1, 2, 5, 16}) {
      const auto other = make_engine(threads);
      const m4j_tensor in = matrix(weights.data(), M4J_F32), out = matrix(blocks.data(), dtype);
      EXPECT_EQ(m4j_quantize(other.get(), &in, &out, &err), M4J_OK) << err.message;
      if (first.empty()) first = blocks;
      EXPECT_EQ(blocks, first);
    }
  }
}

TEST_F(ApiQuantizeTest, RefusesBadArguments) {
  const m4j_tensor good_in = matrix(weights.data(), M4J_F32), good_out = matrix(blocks.data(), M4J_Q8_0);
  const auto refused = [&](auto&& change, const std::vector<std::string>& words,
                           m4j_status code = M4J_ERR_INVALID_ARGUMENT) {
    m4j_tensor in = good_in, out = good_out;
    change(in, out);
    expect_error(m4j_quantize(engine.get(), &in, &out, &err), code, words);
  };
  using T = m4j_tensor;
  refused([](T& in, T& out) { in.shape[1] = out.shape[1] = in.strides[0] = out.strides[0] = 48; },
          {"out", "48", "multiple of 32", "Q8_0"});
  refused([](T&, T& out) { out.shape[0] = 6; }, {"out", "rows=7"});
  refused([](T& in, T&) { in.strides[0] = 65; }, {"weights", "stride of dimension 0", "contiguous"});
  refused([](T&, T& out) { out.strides[0] = 96; }, {"out", "stride of dimension 0", "contiguous"});
  refused([](T&, T& out) { out.dtype = M4J_F16; }, {"out", "expected Q8_0 or Q4_0"});
  refused([](T&, T& out) { out.dtype = 5; }, {"out", "unknown dtype 5"});
  refused([](T& in, T&) { in.dtype = M4J_Q8_0; }, {"weights", "Q8_0", "F32, F16 or BF16"}, M4J_ERR_UNSUPPORTED);
  refused([](T& in, T&) { in.rank = 1; }, {"weights", "rank"});
  refused([](T& in, T&) { in.data = static_cast<char*>(in.data) + 1; }, {"weights", "aligned"});
  refused([](T&, T& out) { out.data = nullptr; }, {"out", "absent"});
  refused([](T& in, T& out) { out.data = static_cast<char*>(in.data) + 1; }, {"out", "overlaps weights"});
  expect_error(m4j_quantize(nullptr, &good_in, &good_out, &err), M4J_ERR_INVALID_ARGUMENT, {"engine"});
  expect_error(m4j_quantize(engine.get(), nullptr, &good_out, &err), M4J_ERR_INVALID_ARGUMENT, {"weights"});
  expect_error(m4j_quantize(engine.get(), &good_in, nullptr, &err), M4J_ERR_INVALID_ARGUMENT, {"out"});
  EXPECT_EQ(m4j_quantize(engine.get(), &good_in, &good_out, &err), M4J_OK) << err.message;
  for (const float bad : {NAN, INFINITY, 1e6f}) {
    weights[300] = bad;
    expect_error(m4j_quantize(engine.get(), &good_in, &good_out, &err), M4J_ERR_INVALID_ARGUMENT, {"weights", "NaN"});
  }
}

TEST_F(ApiQuantizeTest, OnlyMatricesMayBeQuantised) {
  std::vector<float> x = random.normal(3 * kIn), out(3 * kIn);
  const m4j_rms_norm_args norm = {sizeof norm, 1, 1e-5f, 0, matrix(x.data(), M4J_F32, 3), {},
                                  {blocks.data(), M4J_Q8_0, 1, {kIn}, {1}}, matrix(out.data(), M4J_F32, 3)};
  expect_error(m4j_rms_norm(engine.get(), &norm, &err), M4J_ERR_UNSUPPORTED, {"args.weight", "Q8_0", "F32"});
  m4j_linear_args linear = {sizeof linear, matrix(blocks.data(), M4J_Q8_0), matrix(x.data(), M4J_F32, 3), {},
                            matrix(out.data(), M4J_F32, kRows, 3)};
  expect_error(m4j_linear(engine.get(), &linear, &err), M4J_ERR_UNSUPPORTED, {"args.x", "Q8_0", "F32"});

  for (const auto& [name, pick] : std::initializer_list<std::pair<const char*, m4j_tensor m4j_layer_weights::*>>{
           {"norm", &m4j_layer_weights::norm}, {"conv_weight", &m4j_layer_weights::conv_weight},
           {"a_log", &m4j_layer_weights::a_log}, {"d", &m4j_layer_weights::d}}) {
    TinyModel tiny({.family = M4J_MAMBA1}, run_seed());
    m4j_model_weights all = tiny.weights();
    std::vector<m4j_layer_weights> layers(all.layers, all.layers + tiny.config.n_layer);
    (layers[0].*pick).dtype = M4J_Q4_0;
    all.layers = layers.data();
    m4j_model* model = nullptr;
    expect_error(m4j_model_create(engine.get(), &tiny.config, &all, &model, &err), M4J_ERR_UNSUPPORTED,
                 {"layers[0]", name, "Q4_0"});
  }
}

}  // namespace
}  // namespace m4j::test
