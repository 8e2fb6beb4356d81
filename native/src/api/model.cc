#include <cmath>
#include <cstdio>

#include "api/error.h"
#include "api/handles.h"
#include "api/validate.h"

namespace m4j {
namespace {

// Keeps the bytes of every matrix inside 64 bits.
constexpr int64_t kMaxDim = int64_t{1} << 28;
constexpr int64_t kMaxChunkSize = 4096;

void check_dim(const char* name, int64_t value, int64_t max = kMaxDim) {
  if (value < 1 || value > max) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.%s: is %lld, expected 1 ... %lld", name, static_cast<long long>(value),
         static_cast<long long>(max));
  }
}

void check_lacking(const char* name, double value, const char* family) {
  if (value != 0) fail(M4J_ERR_INVALID_ARGUMENT, "config.%s: is %g, expected 0 for %s", name, value, family);
}

void check_eps(const char* name, float value) {
  if (!(value >= 0) || std::isinf(value)) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.%s: is %g, expected a finite number >= 0", name, double{value});
  }
}

void check_mamba1_config(const m4j_model_config& c) {
  const bool falcon = c.family == M4J_FALCON_MAMBA;
  const char* family = falcon ? "Falcon-Mamba" : "Mamba-1";
  check_dim("dt_rank", c.dt_rank);
  check_lacking("n_heads", static_cast<double>(c.n_heads), family);
  check_lacking("headdim", static_cast<double>(c.headdim), family);
  check_lacking("n_groups", static_cast<double>(c.n_groups), family);
  check_lacking("chunk_size", static_cast<double>(c.chunk_size), family);
  check_lacking("dt_min", double{c.dt_min}, family);
  check_lacking("dt_max", double{c.dt_max}, family);
  if (falcon) {
    check_eps("mixer_norm_eps", c.mixer_norm_eps);
  } else {
    check_lacking("mixer_norm_eps", double{c.mixer_norm_eps}, family);
  }
}

void check_mamba2_config(const m4j_model_config& c) {
  check_dim("n_heads", c.n_heads);
  check_dim("headdim", c.headdim);
  check_dim("n_groups", c.n_groups);
  check_dim("chunk_size", c.chunk_size, kMaxChunkSize);
  check_lacking("dt_rank", static_cast<double>(c.dt_rank), "Mamba-2");
  check_lacking("mixer_norm_eps", double{c.mixer_norm_eps}, "Mamba-2");
  if (c.n_heads * c.headdim != c.d_inner) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.d_inner: is %lld, expected n_heads * headdim = %lld * %lld",
         static_cast<long long>(c.d_inner), static_cast<long long>(c.n_heads), static_cast<long long>(c.headdim));
  }
  if (c.n_heads % c.n_groups != 0) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.n_groups: is %lld, expected a divisor of n_heads = %lld",
         static_cast<long long>(c.n_groups), static_cast<long long>(c.n_heads));
  }
  if (c.n_groups * c.d_state > kMaxDim) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.n_groups: %lld groups of d_state %lld are too many",
         static_cast<long long>(c.n_groups), static_cast<long long>(c.d_state));
  }
  if (!(c.dt_min >= 0) || !(c.dt_max >= c.dt_min) || std::isinf(c.dt_min)) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.dt_min, dt_max: are %g, %g, expected 0 <= dt_min <= dt_max and dt_min finite",
         double{c.dt_min}, double{c.dt_max});
  }
}

void check_type(const char* name, int32_t type) {
  if (type != M4J_F32 && type != M4J_BF16) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.%s: is %d, expected 0 (float32) or 2 (bfloat16)", name, type);
  }
}

void check_config(const m4j_model_config& c) {
  require_args(&c, "config");
  require_reserved_zero(c.reserved, "config");
  if (c.family != M4J_MAMBA1 && c.family != M4J_FALCON_MAMBA && c.family != M4J_MAMBA2) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config.family: is %d, expected 1 (Mamba-1), 2 (Falcon-Mamba) or 3 (Mamba-2)",
         c.family);
  }
  check_type("state_type", c.state_type);
  check_type("activation_type", c.activation_type);
  check_dim("n_layer", c.n_layer);
  check_dim("vocab_size", c.vocab_size);
  check_dim("d_model", c.d_model);
  check_dim("d_inner", c.d_inner);
  check_dim("d_state", c.d_state);
  check_dim("d_conv", c.d_conv);
  check_eps("norm_eps", c.norm_eps);
  if (c.family == M4J_MAMBA2) {
    check_mamba2_config(c);
  } else {
    check_mamba1_config(c);
  }
  const Config config{c};
  int64_t floats;
  if (__builtin_mul_overflow(c.d_conv - 1, config.conv_channels(), &floats) ||
      __builtin_add_overflow(floats, config.layer_ssm_state(), &floats) ||
      __builtin_mul_overflow(floats, c.n_layer, &floats) || floats > INT64_MAX / 16) {
    fail(M4J_ERR_INVALID_ARGUMENT, "config: the state of a sequence does not fit into 64-bit sizes");
  }
}

void check_weight(const char* prefix, const char* name, const m4j_tensor& t, std::initializer_list<Dim> shape,
                  Presence presence = Presence::kRequired, Types types = Types::kAnyFloat) {
  char full_name[64];
  std::snprintf(full_name, sizeof full_name, "%s%s", prefix, name);
  if (check_tensor({full_name, t}, shape, types, presence)) check_contiguous({full_name, t});
}

void check_matrix(const char* prefix, const char* name, const m4j_tensor& t, std::initializer_list<Dim> shape,
                  Presence presence = Presence::kRequired) {
  check_weight(prefix, name, t, shape, presence, Types::kWeight);
}

void check_absent(const char* prefix, const char* name, const m4j_tensor& t, const char* family) {
  if (t.data != nullptr) {
    fail(M4J_ERR_INVALID_ARGUMENT, "%s%s: is present, but %s has no such weight", prefix, name, family);
  }
}

void check_layer(const Config& c, int64_t index, const m4j_layer_weights& w) {
  char prefix[48];
  std::snprintf(prefix, sizeof prefix, "weights.layers[%lld].", static_cast<long long>(index));
  const Dim d_model{"d_model", c.d_model}, d_inner{"d_inner", c.d_inner}, d_state{"d_state", c.d_state};
  const Dim in_rows{"in_proj rows", c.in_proj_rows()}, channels{"channels", c.conv_channels()};
  check_weight(prefix, "norm", w.norm, {d_model});
  check_matrix(prefix, "in_proj", w.in_proj, {in_rows, d_model});
  check_weight(prefix, "in_proj_bias", w.in_proj_bias, {in_rows}, Presence::kOptional);
  check_weight(prefix, "conv_weight", w.conv_weight, {channels, {"d_conv", c.d_conv}});
  check_weight(prefix, "conv_bias", w.conv_bias, {channels}, Presence::kOptional);
  if (c.is_mamba2()) {
    const Dim heads{"n_heads", c.n_heads};
    check_absent(prefix, "x_proj", w.x_proj, "Mamba-2");
    check_absent(prefix, "dt_proj", w.dt_proj, "Mamba-2");
    check_weight(prefix, "dt_bias", w.dt_bias, {heads});
    check_weight(prefix, "a_log", w.a_log, {heads});
    check_weight(prefix, "d", w.d, {heads});
    check_weight(prefix, "mixer_norm", w.mixer_norm, {d_inner});
  } else {
    const Dim dt_rank{"dt_rank", c.dt_rank};
    check_absent(prefix, "mixer_norm", w.mixer_norm, "Mamba-1");
    check_matrix(prefix, "x_proj", w.x_proj, {{"dt_rank + 2 d_state", c.x_proj_rows()}, d_inner});
    check_matrix(prefix, "dt_proj", w.dt_proj, {d_inner, dt_rank});
    check_weight(prefix, "dt_bias", w.dt_bias, {d_inner});
    check_weight(prefix, "a_log", w.a_log, {d_inner, d_state});
    check_weight(prefix, "d", w.d, {d_inner});
  }
  check_matrix(prefix, "out_proj", w.out_proj, {d_model, d_inner});
  check_weight(prefix, "out_proj_bias", w.out_proj_bias, {d_model}, Presence::kOptional);
}

void check_weights(const Config& c, const m4j_model_weights& w) {
  const Dim vocab{"vocab_size", c.vocab_size}, d_model{"d_model", c.d_model};
  check_matrix("weights.", "embedding", w.embedding, {vocab, d_model});
  check_weight("weights.", "norm_f", w.norm_f, {d_model});
  check_matrix("weights.", "lm_head", w.lm_head, {vocab, d_model}, Presence::kOptional);
  require(w.layers, "weights.layers");
  for (int64_t i = 0; i < c.n_layer; ++i) check_layer(c, i, w.layers[i]);
}

m4j_model* create_model(m4j_engine* engine, const m4j_model_config* config, const m4j_model_weights* weights) {
  require(engine, "engine");
  check_config(require_args(config, "config"));
  if (config->state_type != M4J_F32 && engine->impl->gpu == nullptr) {
    fail(M4J_ERR_UNSUPPORTED, "config.state_type: bfloat16 states are for GPUs, the CPU keeps float32");
  }
  check_weights(Config{*config}, require_args(weights, "weights"));
  const auto model = make_counted<Model>(engine->impl, *config, *weights);
  engine->impl->log(M4J_LOG_DEBUG, "model of %lld layers, d_model %lld, fingerprint %016llx",
                    static_cast<long long>(config->n_layer), static_cast<long long>(config->d_model),
                    static_cast<unsigned long long>(model->fingerprint));
  return new_handle<m4j_model>(std::shared_ptr<const Model>(model));
}

}  // namespace
}  // namespace m4j

m4j_status m4j_model_create(m4j_engine* engine, const m4j_model_config* config, const m4j_model_weights* weights,
                            m4j_model** out, m4j_error* err) {
  return m4j::guarded(err, [&] {
    m4j::require(out, "out");
    *out = m4j::create_model(engine, config, weights);
  });
}

void m4j_model_release(m4j_model* model) { m4j::delete_handle(model); }

int64_t m4j_model_conv_state_size(const m4j_model* model) {
  return model == nullptr ? 0 : model->impl->config.conv_state();
}

int64_t m4j_model_ssm_state_size(const m4j_model* model) {
  return model == nullptr ? 0 : model->impl->config.ssm_state();
}

int64_t m4j_model_state_bytes(const m4j_model* model) {
  return model == nullptr ? 0 : model->impl->config.state_bytes();
}

uint64_t m4j_model_fingerprint(const m4j_model* model) { return model == nullptr ? 0 : model->impl->fingerprint; }
