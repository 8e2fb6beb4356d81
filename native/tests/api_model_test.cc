#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "support/api_test.h"

namespace m4j::test {
namespace {

class ApiModelTest : public ApiTest {
 protected:
  EnginePtr engine = make_engine(1);
  ~ApiModelTest() override { engine.reset(); }

  m4j_status create(const m4j_model_config& config, const m4j_model_weights& weights, m4j_model** out) {
    return m4j_model_create(engine.get(), &config, &weights, out, &err);
  }

  // A model after `change` is refused with a message that names all of `words`, and *out stays as it was.
  void expect_refused(int32_t family, const std::function<void(TinyModel&)>& change,
                      const std::vector<std::string>& words, m4j_status code = M4J_ERR_INVALID_ARGUMENT) {
    TinyModel tiny({.family = family}, run_seed());
    change(tiny);
    m4j_model* const untouched = reinterpret_cast<m4j_model*>(16);
    m4j_model* out = untouched;
    expect_error(create(tiny.config, tiny.weights(), &out), code, words);
    EXPECT_EQ(out, untouched);
  }
  uint64_t fingerprint(TinyModel& tiny) { return m4j_model_fingerprint(make_model(engine, tiny).get()); }
};

TEST_F(ApiModelTest, BadDimensionsAreNamed) {
  using Field = int64_t m4j_model_config::*;
  const std::pair<const char*, Field> common[] = {
      {"n_layer", &m4j_model_config::n_layer}, {"vocab_size", &m4j_model_config::vocab_size},
      {"d_model", &m4j_model_config::d_model}, {"d_inner", &m4j_model_config::d_inner},
      {"d_state", &m4j_model_config::d_state}, {"d_conv", &m4j_model_config::d_conv}};
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const auto& [name, field] : common) {
      for (const int64_t value : {int64_t{0}, int64_t{-4}, INT64_MIN, INT64_MAX, int64_t{1} << 40}) {
        expect_refused(family, [&, f = field](TinyModel& m) { m.config.*f = value; }, {name, std::to_string(value)});
      }
    }
  }
  const std::pair<const char*, Field> mamba2[] = {{"n_heads", &m4j_model_config::n_heads},
                                                  {"headdim", &m4j_model_config::headdim},
                                                  {"n_groups", &m4j_model_config::n_groups},
                                                  {"chunk_size", &m4j_model_config::chunk_size}};
  for (const auto& [name, field] : mamba2) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, INT64_MAX}) {
      expect_refused(M4J_MAMBA2, [&, f = field](TinyModel& m) { m.config.*f = value; }, {name, std::to_string(value)});
    }
    expect_refused(M4J_MAMBA1, [f = field](TinyModel& m) { m.config.*f = 2; }, {name, "expected 0 for Mamba-1"});
    expect_refused(M4J_FALCON_MAMBA, [f = field](TinyModel& m) { m.config.*f = 2; }, {name, "Falcon-Mamba"});
  }
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.dt_rank = 0; }, {"dt_rank", "0"});
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.dt_rank = 3; }, {"dt_rank", "expected 0 for Mamba-2"});
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.chunk_size = 4097; }, {"chunk_size", "4097", "4096"});
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.n_heads = 5; }, {"d_inner", "30", "5 * 5"});
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.n_groups = 4; }, {"n_groups", "4", "n_heads = 6"});
}

TEST_F(ApiModelTest, BadNumbersAreNamed) {
  for (const float value : {-1.0f, NAN, INFINITY}) {
    expect_refused(M4J_MAMBA1, [&](TinyModel& m) { m.config.norm_eps = value; }, {"norm_eps"});
    expect_refused(M4J_FALCON_MAMBA, [&](TinyModel& m) { m.config.mixer_norm_eps = value; }, {"mixer_norm_eps"});
    expect_refused(M4J_MAMBA1, [&](TinyModel& m) { m.config.mixer_norm_eps = value; }, {"mixer_norm_eps"});
    expect_refused(M4J_MAMBA2, [&](TinyModel& m) { m.config.dt_min = value; }, {"dt_min"});
  }
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.dt_max = NAN; }, {"dt_max"});
  expect_refused(M4J_MAMBA2, [](TinyModel& m) { m.config.dt_min = 2, m.config.dt_max = 1; }, {"dt_min", "2", "1"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.family = 4; }, {"family", "4"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.state_type = M4J_F16; },
                 {"config.state_type", "is 1", "float32", "bfloat16"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.activation_type = M4J_Q8_0; },
                 {"config.activation_type", "is 3", "float32", "bfloat16"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.reserved = 1; }, {"config.reserved"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.config.struct_size -= 8; }, {"config", "struct_size"});
}

TEST_F(ApiModelTest, StatesInBfloat16AreForGpus) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    TinyModel tiny({.family = family}, run_seed());
    tiny.config.state_type = M4J_BF16;
    m4j_model* model = nullptr;
    expect_error(m4j_model_create(engine.get(), &tiny.config, &tiny.weights(), &model, &err), M4J_ERR_UNSUPPORTED,
                 {"config.state_type", "GPU", "CPU keeps float32"});
    EXPECT_EQ(model, nullptr);
  }
}

struct WeightCase {
  const char* name;
  TestWeight TestLayer::*weight;
  bool optional;
};

std::vector<WeightCase> weight_cases(int32_t family) {
  std::vector<WeightCase> cases = {{"norm", &TestLayer::norm, false},
                                   {"in_proj", &TestLayer::in_proj, false},
                                   {"in_proj_bias", &TestLayer::in_proj_bias, true},
                                   {"conv_weight", &TestLayer::conv_weight, false},
                                   {"conv_bias", &TestLayer::conv_bias, true},
                                   {"dt_bias", &TestLayer::dt_bias, false},
                                   {"a_log", &TestLayer::a_log, false},
                                   {"d", &TestLayer::d, false},
                                   {"out_proj", &TestLayer::out_proj, false},
                                   {"out_proj_bias", &TestLayer::out_proj_bias, true}};
  if (family == M4J_MAMBA2) {
    cases.push_back({"mixer_norm", &TestLayer::mixer_norm, false});
  } else {
    cases.push_back({"x_proj", &TestLayer::x_proj, false});
    cases.push_back({"dt_proj", &TestLayer::dt_proj, false});
  }
  return cases;
}

TEST_F(ApiModelTest, EveryWeightOfALayerIsChecked) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    for (const WeightCase& c : weight_cases(family)) {
      SCOPED_TRACE(c.name);
      const std::string full_name = std::string("weights.layers[1].") + c.name + ":";
      const auto weight = [&](TinyModel& m) -> TestWeight& { return m.layers[1].*c.weight; };
      if (c.optional) {
        TinyModel tiny({.family = family}, run_seed());
        weight(tiny) = {};
        make_model(engine, tiny);
      } else {
        expect_refused(family, [&](TinyModel& m) { weight(m) = {}; }, {full_name, "absent"});
      }
      expect_refused(family, [&](TinyModel& m) { ++weight(m).shape[0]; }, {full_name, "shape"});
      expect_refused(family, [&](TinyModel& m) { --weight(m).shape.back(); }, {full_name, "shape"});
      expect_refused(family, [&](TinyModel& m) { weight(m).shape.push_back(1); }, {full_name, "rank"});
    }
  }
}

TEST_F(ApiModelTest, WeightsOfAnotherFamilyAreRefused) {
  TinyModel one({.family = M4J_MAMBA1}, run_seed()), two({.family = M4J_MAMBA2}, run_seed());
  expect_refused(M4J_MAMBA2, [&](TinyModel& m) { m.layers[0].x_proj = one.layers[0].x_proj; },
                 {"weights.layers[0].x_proj", "Mamba-2"});
  expect_refused(M4J_MAMBA2, [&](TinyModel& m) { m.layers[0].dt_proj = one.layers[0].dt_proj; },
                 {"weights.layers[0].dt_proj", "Mamba-2"});
  expect_refused(M4J_MAMBA1, [&](TinyModel& m) { m.layers[2].mixer_norm = two.layers[0].mixer_norm; },
                 {"weights.layers[2].mixer_norm", "Mamba-1"});
}

TEST_F(ApiModelTest, WeightsOfTheModelAreChecked) {
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.embedding = {}; }, {"weights.embedding", "absent"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { m.norm_f = {}; }, {"weights.norm_f", "absent"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { --m.embedding.shape[0]; }, {"weights.embedding", "[36, 24]", "37"});
  expect_refused(M4J_MAMBA1, [](TinyModel& m) { ++m.lm_head.shape[1]; }, {"weights.lm_head", "[37, 25]", "24"});

  TinyModel tiny({.family = M4J_MAMBA1}, run_seed());
  m4j_model* out = nullptr;
  m4j_model_weights w = tiny.weights();
  w.layers = nullptr;
  expect_error(create(tiny.config, w, &out), M4J_ERR_INVALID_ARGUMENT, {"weights.layers"});
  w = tiny.weights();
  w.struct_size = 0;
  expect_error(create(tiny.config, w, &out), M4J_ERR_INVALID_ARGUMENT, {"weights", "struct_size is 0"});
}

TEST_F(ApiModelTest, BadDescriptorsAreNamed) {
  TinyModel tiny({.family = M4J_MAMBA1}, run_seed());
  m4j_model* out = nullptr;
  const auto refused = [&](const std::function<void(m4j_tensor&)>& change, const std::vector<std::string>& words) {
    m4j_model_weights w = tiny.weights();
    change(w.embedding);
    expect_error(create(tiny.config, w, &out), M4J_ERR_INVALID_ARGUMENT, words);
  };
  refused([](m4j_tensor& t) { t.dtype = 99; }, {"weights.embedding", "dtype 99"});
  refused([](m4j_tensor& t) { t.rank = 0; }, {"weights.embedding", "rank is 0"});
  refused([](m4j_tensor& t) { t.rank = 1000; }, {"weights.embedding", "rank is 1000"});
  refused([](m4j_tensor& t) { t.strides[0] += 1; }, {"weights.embedding", "stride", "25", "24"});
  refused([](m4j_tensor& t) { t.strides[1] = 2; }, {"weights.embedding", "stride", "2", "1"});
  refused([](m4j_tensor& t) { t.strides[0] = INT64_MAX; }, {"weights.embedding", "64-bit"});
  refused([](m4j_tensor& t) { t.strides[0] = INT64_MIN; }, {"weights.embedding", "64-bit"});
  refused([](m4j_tensor& t) { t.data = static_cast<char*>(t.data) + 2; }, {"weights.embedding", "aligned"});
}

TEST_F(ApiModelTest, NullArgumentsAreNamed) {
  TinyModel tiny({.family = M4J_MAMBA1}, run_seed());
  m4j_model* out = nullptr;
  const auto bad = M4J_ERR_INVALID_ARGUMENT;
  expect_error(m4j_model_create(nullptr, &tiny.config, &tiny.weights(), &out, &err), bad, {"engine"});
  expect_error(m4j_model_create(engine.get(), nullptr, &tiny.weights(), &out, &err), bad, {"config"});
  expect_error(m4j_model_create(engine.get(), &tiny.config, nullptr, &out, &err), bad, {"weights"});
  expect_error(m4j_model_create(engine.get(), &tiny.config, &tiny.weights(), nullptr, &err), bad, {"out"});
}

TEST_F(ApiModelTest, SmallTensorsAreCopiedAndMatricesBorrowed) {
  TinyModel tiny({.family = M4J_MAMBA2}, run_seed());
  const auto model = make_model(engine, tiny);
  const auto states = make_states(model);
  const Tokens tokens = {1, 2, 3};
  const auto before = advance(states, {take(states)}, {tokens}, tiny.config.vocab_size);
  for (TestLayer& l : tiny.layers) {
    for (TestWeight* w : {&l.norm, &l.in_proj_bias, &l.conv_weight, &l.conv_bias, &l.dt_bias, &l.a_log, &l.d,
                          &l.mixer_norm, &l.out_proj_bias}) {
      std::fill(w->singles.begin(), w->singles.end(), NAN);
    }
  }
  EXPECT_EQ(advance(states, {take(states)}, {tokens}, tiny.config.vocab_size), before);
}

TEST_F(ApiModelTest, FingerprintTellsModelsApart) {
  for (const int32_t family : {M4J_MAMBA1, M4J_FALCON_MAMBA, M4J_MAMBA2}) {
    TinyModel tiny({.family = family}, run_seed()), twin({.family = family}, run_seed());
    const uint64_t original = fingerprint(tiny);
    EXPECT_EQ(fingerprint(twin), original);
    EXPECT_NE(original, 0u);
    for (const WeightCase& c : weight_cases(family)) {
      TinyModel changed({.family = family}, run_seed());
      (changed.layers[2].*c.weight).singles.back() += 0.5f;
      EXPECT_NE(fingerprint(changed), original) << c.name;
    }
    TinyModel eps({.family = family}, run_seed()), untied({.family = family, .tied = true}, run_seed());
    eps.config.norm_eps = 1e-6f;
    EXPECT_NE(fingerprint(eps), original);
    EXPECT_NE(fingerprint(untied), original);
  }
}

TEST_F(ApiModelTest, ModelKeepsItsEngine) {
  TinyModel tiny({.family = M4J_FALCON_MAMBA}, run_seed());
  auto model = make_model(engine, tiny);
  engine.reset();
  const auto states = make_states(model);
  EXPECT_EQ(advance(states, {take(states)}, {{1, 2}}, tiny.config.vocab_size).size(), 1u);
}

}  // namespace
}  // namespace m4j::test
