// Models whose layers are stored in different types, and with more states than some kernels take.
#include <gtest/gtest.h>

#include "ops/ops.h"
#include "support/api_test.h"

namespace m4j::test {
namespace {

// Some or all matrices are Q8_0.
struct QuantisedModel {
  TinyModel tiny;
  m4j_model_weights weights;
  std::vector<m4j_layer_weights> layers;
  std::vector<std::vector<uint8_t>> blocks;

  QuantisedModel(const TinyOptions& options)
      : tiny(options, run_seed()), weights(tiny.weights()), layers(weights.layers, weights.layers + tiny.config.n_layer) {
    weights.layers = layers.data();
  }

  void quantise(const EnginePtr& engine, m4j_tensor* matrix) {
    if (matrix->data == nullptr || matrix->shape[1] % kQuantBlock != 0) return;
    const m4j_tensor stored = *matrix;
    blocks.emplace_back(static_cast<size_t>(dtype_bytes(DType::kQ8_0, stored.shape[0] * stored.shape[1])));
    matrix->data = blocks.back().data();
    matrix->dtype = M4J_Q8_0;
    m4j_error err{};
    EXPECT_EQ(m4j_quantize(engine.get(), &stored, matrix, &err), M4J_OK) << err.message;
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

  // On the CPU activations that meet quantised weights may be rounded to 16 bits.
  void expect_equal(const QuantisedModel& model, double tolerance) {
    const m4j_model_config& config = model.tiny.config;
    const auto input = calls(config.vocab_size);
    const std::vector<float> expected = run(cpu, config, model.weights, input),
                             actual = run(gpu, config, model.weights, input);
    EXPECT_LT(relative_error(actual, {expected.begin(), expected.end()}), tolerance);
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
    QuantisedModel mixed({.family = M4J_MAMBA1, .dtype = dtype, .even = true, .deep = true});
    for (size_t i = 1; i < mixed.layers.size(); ++i) mixed.quantise(cpu, &mixed.layers[i].out_proj);
    expect_equal(mixed, dtype == DType::kF32 ? 1e-3 : 2e-2);
  }
}

TEST_F(CudaModelWeights, AllInt8) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (const bool tied : {false, true}) {
        // Wider layers multiply the rounding of activations: the scales of the weights are made for narrow ones.
        const TinyOptions options{
            .family = family, .dtype = dtype, .tied = tied, .d_model = 32, .d_inner = 96, .even = true};
        SCOPED_TRACE(options.name());
        QuantisedModel model(options);
        model.quantise(cpu, &model.weights.embedding);
        model.quantise(cpu, &model.weights.lm_head);
        for (m4j_layer_weights& layer : model.layers) {
          for (m4j_tensor* m : {&layer.in_proj, &layer.x_proj, &layer.out_proj}) model.quantise(cpu, m);
        }
        const size_t of_layer = family == M4J_MAMBA2 ? 2 : 3;
        ASSERT_EQ(model.blocks.size(), of_layer * model.layers.size() + (tied ? 1 : 2));
        expect_equal(model, 3e-2);  // activations are bfloat16 where the first matrix is quantised
      }
    }
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
