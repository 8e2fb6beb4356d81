#include "model/model.h"

#include <algorithm>
#include <cmath>

#include "ops/half.h"
#include "ops/tensor.h"
#include "runtime/hash.h"

namespace m4j {
namespace {

Matrix borrow(const m4j_tensor& t) { return Matrix{t.data, dtype_of(t), t.shape[0], t.shape[1]}; }

// Empty if t is absent.
FloatBuffer copy(const m4j_tensor& t) {
  if (t.data == nullptr) return FloatBuffer();
  FloatBuffer result(element_count(t));
  for (int64_t i = 0; i < result.size(); ++i) result[i] = load_f32(t.data, dtype_of(t), i);
  return result;
}

// [rows, columns] -> [columns, rows]
FloatBuffer copy_transposed(const m4j_tensor& t) {
  const int64_t rows = t.shape[0], columns = t.shape[1];
  FloatBuffer result(element_count(t));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) result[c * rows + r] = load_f32(t.data, dtype_of(t), r * columns + c);
  }
  return result;
}

// Rounded from float64, so that a file which holds A instead, such as GGUF, gives the same bits.
FloatBuffer negative_exp(FloatBuffer a_log) {
  for (int64_t i = 0; i < a_log.size(); ++i) a_log[i] = static_cast<float>(-std::exp(double{a_log[i]}));
  return a_log;
}

Layer make_layer(const Config& config, const m4j_layer_weights& w) {
  Layer layer;
  layer.norm = copy(w.norm);
  layer.in_proj = borrow(w.in_proj);
  layer.in_proj_bias = copy(w.in_proj_bias);
  layer.conv_weight = copy_transposed(w.conv_weight);
  layer.conv_bias = copy(w.conv_bias);
  layer.dt_bias = copy(w.dt_bias);
  layer.A = negative_exp(config.is_mamba2() ? copy(w.a_log) : copy_transposed(w.a_log));
  layer.D = copy(w.d);
  layer.out_proj = borrow(w.out_proj);
  layer.out_proj_bias = copy(w.out_proj_bias);
  if (config.is_mamba2()) {
    layer.mixer_norm = copy(w.mixer_norm);
  } else {
    layer.x_proj = borrow(w.x_proj);
    layer.dt_proj = borrow(w.dt_proj);
  }
  return layer;
}

// Small tensors in full; of large ones evenly spread samples, so that a mapped file need not be read through.
void add_tensor(Hash& hash, const m4j_tensor& t) {
  constexpr int64_t kWhole = 262144, kSamples = 4, kSampleBytes = 64;
  hash.add(t.data != nullptr);
  if (t.data == nullptr) return;
  hash.add(t.dtype);
  const int64_t size = dtype_bytes(dtype_of(t), element_count(t));
  const char* bytes = static_cast<const char*>(t.data);
  if (size <= kWhole) {
    hash.add(bytes, static_cast<std::size_t>(size));
  } else {
    const int64_t step = (size - kSampleBytes) / (kSamples - 1);
    for (int64_t i = 0; i < kSamples; ++i) hash.add(bytes + i * step, kSampleBytes);
  }
}

uint64_t fingerprint_of(const m4j_model_config& c, const m4j_model_weights& w) {
  Hash hash;
  hash.add(c.family);
  for (const int64_t dim : {c.n_layer, c.vocab_size, c.d_model, c.d_inner, c.d_state, c.d_conv, c.dt_rank, c.n_heads,
                            c.headdim, c.n_groups}) {
    hash.add(dim);
  }
  for (const float value : {c.norm_eps, c.mixer_norm_eps, c.dt_min, c.dt_max}) hash.add(value);
  for (const m4j_tensor* t : {&w.embedding, &w.norm_f, &w.lm_head}) add_tensor(hash, *t);
  for (int64_t i = 0; i < c.n_layer; ++i) {
    const m4j_layer_weights& l = w.layers[i];
    for (const m4j_tensor* t : {&l.norm, &l.in_proj, &l.in_proj_bias, &l.conv_weight, &l.conv_bias, &l.x_proj,
                                &l.dt_proj, &l.dt_bias, &l.a_log, &l.d, &l.mixer_norm, &l.out_proj,
                                &l.out_proj_bias}) {
      add_tensor(hash, *t);
    }
  }
  return hash.value();
}

}  // namespace

Model::Model(std::shared_ptr<Engine> engine_, const m4j_model_config& config_, const m4j_model_weights& weights)
    : engine(std::move(engine_)),
      config{config_},
      fingerprint(fingerprint_of(config_, weights)),
      embedding(borrow(weights.embedding)),
      norm_f(copy(weights.norm_f)),
      lm_head(weights.lm_head.data == nullptr ? embedding : borrow(weights.lm_head)) {
  layers.reserve(static_cast<std::size_t>(config.n_layer));
  for (int64_t i = 0; i < config.n_layer; ++i) layers.push_back(make_layer(config, weights.layers[i]));
  allow_for(lm_head);
  for (const Layer& l : layers) {
    for (const Matrix* m : {&l.in_proj, &l.x_proj, &l.dt_proj, &l.out_proj}) allow_for(*m);
  }
  if (engine->gpu != nullptr) {
    const Engine::Turn turn(*engine);
    CudaDevice::call(engine->gpu->api.model_create, engine->gpu->engine, *this, &gpu);
  }
}

Model::~Model() {
  if (gpu == nullptr) return;
  const Engine::Turn turn(*engine);
  engine->gpu->api.model_release(gpu);
}

void Model::allow_for(const Matrix& m) {
  if (m.columns > 0) linear_scratch = std::max(linear_scratch, engine->ops.linear_scratch(m.columns, m.dtype));
}

}  // namespace m4j
