// Models whose layers are stored in different types, and with more states than some kernels take.
#include <gtest/gtest.h>

#include "ops/ops.h"
#include "support/api_test.h"

namespace m4j::test {
namespace {

// Q8_0 for out_proj of all layers but the first.
struct MixedModel {
  TinyModel tiny;
  m4j_model_weights weights;
  std::vector<m4j_layer_weights> layers;
  std::vector<std::vector<uint8_t>> blocks;

  MixedModel(const EnginePtr& engine, DType dtype)
      : tiny({.family = M4J_MAMBA1, .dtype = dtype, .even = true, .deep = true}, run_seed()), weights(tiny.weights()),
        layers(weights.layers, weights.layers + tiny.config.n_layer) {
    for (size_t i = 1; i < layers.size(); ++i) {
      const m4j_tensor stored = layers[i].out_proj;
      blocks.emplace_back(static_cast<size_t>(dtype_bytes(DType::kQ8_0, stored.shape[0] * stored.shape[1])));
      layers[i].out_proj.data = blocks.back().data();
      layers[i].out_proj.dtype = M4J_Q8_0;
      m4j_error err{};
      EXPECT_EQ(m4j_quantize(engine.get(), &stored, &layers[i].out_proj, &err), M4J_OK) << err.message;
    }
    weights.layers = layers.data();
  }
};

class CudaModelWeights : public ApiTest {
 protected:
  // Logits of calls of three sequences of these lengths.
  std::vector<float> run(const EnginePtr& engine, const m4j_model_config& config, const m4j_model_weights& weights,
                         const std::vector<std::vector<Tokens>>& calls) {
    m4j_model* raw = nullptr;
    EXPECT_EQ(m4j_model_create(engine.get(), &config, &weights, &raw, &err), M4J_OK) << err.message;
    const ModelPtr model(raw);
    const StatesPtr states = make_states(model);
    const std::vector<m4j_slot> slots = {take(states), take(states), take(states)};
    std::vector<float> logits;
    for (const std::vector<Tokens>& call : calls) {
      const std::vector<float> some = joined(advance(states, slots, call, config.vocab_size));
      logits.insert(logits.end(), some.begin(), some.end());
    }
    return logits;
  }

  std::vector<std::vector<Tokens>> calls(int64_t vocab_size) {
    std::vector<std::vector<Tokens>> result;
    for (const std::vector<int64_t>& lengths : {std::vector<int64_t>{70, 3, 9}, {1, 1, 1}, {1, 1, 1}, {2, 1, 5}}) {
      result.emplace_back();
      for (const int64_t n : lengths) result.back().push_back(random.ids(n, static_cast<int32_t>(vocab_size)));
    }
    return result;
  }

  const EnginePtr cpu = make_engine(), gpu = make_gpu_engine();
};

TEST_F(CudaModelWeights, LayersOfDifferentTypes) {
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    SCOPED_TRACE(dtype == DType::kF32 ? "float32 and Q8_0" : "bfloat16 and Q8_0");
    const MixedModel mixed(cpu, dtype);
    const m4j_model_config& config = mixed.tiny.config;
    const auto input = calls(config.vocab_size);
    const std::vector<float> expected = run(cpu, config, mixed.weights, input),
                             actual = run(gpu, config, mixed.weights, input);
    EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), dtype == DType::kF32 ? 1e-3 : 2e-2);
  }
}

TEST_F(CudaModelWeights, Mamba2TakesAnyNumberOfStates) {
  TinyModel tiny({.family = M4J_MAMBA2, .d_state = 264, .even = true}, run_seed());
  const auto input = calls(tiny.config.vocab_size);
  const std::vector<float> expected = run(cpu, tiny.config, tiny.weights(), input),
                           actual = run(gpu, tiny.config, tiny.weights(), input);
  EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), 1e-4);
}

TEST_F(CudaModelWeights, Mamba1TakesSoManyStates) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA}) {
    TinyModel tiny({.family = family, .d_state = 264, .even = true}, run_seed());
    m4j_model* model = nullptr;
    expect_error(m4j_model_create(gpu.get(), &tiny.config, &tiny.weights(), &model, &err), M4J_ERR_UNSUPPORTED,
                 {"d_state", "264", "256"});
  }
}

}  // namespace
}  // namespace m4j::test
