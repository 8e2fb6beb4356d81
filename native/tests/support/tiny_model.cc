#include "support/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "support/weights.h"

namespace m4j::test {
namespace {

class Source {
 public:
  explicit Source(uint64_t seed) : random_(seed) {}

  TestWeight normal(std::vector<int64_t> shape, DType dtype, float scale, float mean = 0) {
    TestWeight w{std::move(shape), dtype, {}, {}};
    int64_t count = 1;
    for (const int64_t n : w.shape) count *= n;
    std::normal_distribution<float> distribution(mean, scale);
    for (int64_t i = 0; i < count; ++i) {
      if (dtype == DType::kF32) {
        w.singles.push_back(distribution(random_));
      } else {
        w.halves.push_back(half(dtype, scale));
      }
    }
    return w;
  }
  TestWeight vector(int64_t size, float scale, float mean = 0) { return normal({size}, DType::kF32, scale, mean); }

 private:
  // Any sign and fraction, with an exponent so that the magnitude is between scale / 8 and 2 scale.
  uint16_t half(DType dtype, float scale) {
    const int fraction_bits = dtype == DType::kF16 ? 10 : 7, bias = dtype == DType::kF16 ? 15 : 127;
    const int exponent = std::ilogb(scale) + bias - static_cast<int>(random_() % 4);
    const int fraction = static_cast<int>(random_() % (1u << fraction_bits));
    return static_cast<uint16_t>((random_() % 2) << 15 | static_cast<unsigned>(exponent << fraction_bits | fraction));
  }
  std::mt19937_64 random_;
};

double silu(double x) { return x / (1 + std::exp(-x)); }
double softplus(double x) { return x > 30 ? x : std::log1p(std::exp(x)); }

std::vector<double> multiply(const TestWeight& w, const std::vector<double>& x, const TestWeight& bias) {
  std::vector<double> y(static_cast<size_t>(w.shape[0]));
  const int64_t in = w.shape[1];
  for (int64_t r = 0; r < w.shape[0]; ++r) {
    double sum = bias.present() ? bias[r] : 0;
    for (int64_t i = 0; i < in; ++i) sum += w[r * in + i] * x[static_cast<size_t>(i)];
    y[static_cast<size_t>(r)] = sum;
  }
  return y;
}

std::vector<double> part(const std::vector<double>& v, int64_t begin, int64_t size) {
  return {v.begin() + begin, v.begin() + begin + size};
}

// weight may be null.
std::vector<double> norm(std::vector<double> x, const TestWeight* weight, double eps, int64_t groups = 1) {
  const size_t size = x.size() / static_cast<size_t>(groups);
  for (size_t begin = 0; begin < x.size(); begin += size) {
    double squares = 0;
    for (size_t i = 0; i < size; ++i) squares += x[begin + i] * x[begin + i];
    const double factor = 1 / std::sqrt(squares / static_cast<double>(size) + eps);
    for (size_t i = 0; i < size; ++i) x[begin + i] *= factor;
  }
  if (weight != nullptr) {
    for (size_t i = 0; i < x.size(); ++i) x[i] *= (*weight)[static_cast<int64_t>(i)];
  }
  return x;
}

}  // namespace

double TestWeight::operator[](int64_t i) const {
  const size_t k = static_cast<size_t>(i);
  return dtype == DType::kF32 ? singles[k] : decode_half(dtype, halves[k]);
}

m4j_tensor TestWeight::tensor() const {
  m4j_tensor t{};
  if (!present()) return t;
  t.data = dtype == DType::kF32 ? static_cast<void*>(const_cast<float*>(singles.data()))
                                : const_cast<uint16_t*>(halves.data());
  t.dtype = static_cast<int32_t>(dtype);
  t.rank = static_cast<int32_t>(shape.size());
  int64_t stride = 1;
  for (int i = t.rank - 1; i >= 0; --i) {
    t.shape[i] = shape[static_cast<size_t>(i)];
    t.strides[i] = stride;
    stride *= t.shape[i];
  }
  return t;
}

std::string TinyOptions::name() const {
  const char* families[] = {"", "mamba1", "falcon", "mamba2"};
  std::string s = families[family];
  s += "_conv" + std::to_string(d_conv) + "_" + dtype_name(dtype) + (biases ? "_bias" : "") + (tied ? "_tied" : "");
  if (family == M4J_MAMBA2) s += "_g" + std::to_string(n_groups) + "_chunk" + std::to_string(chunk_size);
  if (activation_type == DType::kBF16) s += "_rounded";
  if (dt_min > 0) s += "_limited";
  if (d_model != 0) s += "_model" + std::to_string(d_model);
  if (d_inner != 0) s += "_inner" + std::to_string(d_inner);
  if (d_state != 0) s += "_state" + std::to_string(d_state);
  if (wide) s += "_wide";
  if (deep) s += "_deep";
  return s;
}

int64_t TinyModel::conv_channels() const {
  return config.family == M4J_MAMBA2 ? config.d_inner + 2 * config.n_groups * config.d_state : config.d_inner;
}

TinyModel::TinyModel(const TinyOptions& o, uint64_t seed) : config{} {
  const bool mamba2 = o.family == M4J_MAMBA2;
  config.struct_size = sizeof config;
  config.family = o.family;
  config.activation_type = static_cast<int32_t>(o.activation_type);
  config.n_layer = 3;
  config.vocab_size = 37;
  config.d_model = 24;
  config.d_inner = o.even ? 48 : mamba2 ? 30 : 43;
  config.d_state = o.even ? 8 : 7;
  config.d_conv = o.d_conv;
  config.norm_eps = 1e-5f;
  if (mamba2) {
    config.n_heads = 6;
    config.headdim = o.even ? 8 : 5;
    config.n_groups = o.n_groups;
    config.chunk_size = o.chunk_size;
    config.dt_min = o.dt_min;
    config.dt_max = o.dt_max;
  } else {
    config.dt_rank = 3;
    if (o.family == M4J_FALCON_MAMBA) config.mixer_norm_eps = 1e-6f;
  }
  if (o.wide) {
    config.vocab_size = 9307;
    config.d_model = 264;
    config.d_inner = 528;
    config.d_state = mamba2 ? 40 : 16;
    config.n_heads = mamba2 ? 66 : 0;
    config.dt_rank = mamba2 ? 0 : 17;
  }
  if (o.deep) {
    config.n_layer = 6;
    config.d_inner = 8960;
    config.d_state = 16;
    config.dt_rank = 250;
  }
  if (o.d_model != 0) config.d_model = o.d_model;
  if (o.d_inner != 0) config.d_inner = o.d_inner;
  if (o.d_inner != 0 && mamba2) config.headdim = o.d_inner / config.n_heads;
  if (o.d_state != 0) config.d_state = o.d_state;
  // Scales as in trained models: larger ones make the recurrence amplify float32 rounding.
  const float narrow = o.deep ? 0.1f : o.wide ? 0.3f : 1;  // for longer sums
  Source source(seed);
  const int64_t D = config.d_model, E = config.d_inner, N = config.d_state, R = config.dt_rank, C = conv_channels();
  const int64_t in_rows = mamba2 ? E + C + config.n_heads : 2 * E, heads = mamba2 ? config.n_heads : E;
  embedding = source.normal({config.vocab_size, D}, o.dtype, 1);
  norm_f = source.vector(D, 0.2f, 1);
  if (!o.tied) lm_head = source.normal({config.vocab_size, D}, o.dtype, 0.5f * narrow);
  for (int64_t i = 0; i < config.n_layer; ++i) {
    TestLayer l;
    l.norm = source.vector(D, 0.2f, 1);
    l.in_proj = source.normal({in_rows, D}, o.dtype, 0.125f * narrow);
    l.conv_weight = source.normal({C, o.d_conv}, DType::kF32, 0.5f);
    l.dt_bias = source.vector(heads, 1, -1);
    if (mamba2) {
      l.a_log = source.vector(heads, 0.7f);
      l.mixer_norm = source.vector(E, 0.2f, 1);
    } else {
      l.x_proj = source.normal({R + 2 * N, E}, o.dtype, 0.25f * narrow);
      l.dt_proj = source.normal({E, R}, o.dtype, 0.5f * narrow);
      l.a_log = source.normal({E, N}, DType::kF32, 0.7f);
    }
    l.d = source.vector(heads, 0.3f, 1);
    l.out_proj = source.normal({D, E}, o.dtype, 0.125f * narrow);
    if (o.biases) {
      l.in_proj_bias = source.vector(in_rows, 0.3f);
      l.conv_bias = source.vector(C, 0.3f);
      l.out_proj_bias = source.vector(D, 0.3f);
    }
    layers.push_back(std::move(l));
  }
}

const m4j_model_weights& TinyModel::weights() {
  layer_descriptors_.clear();
  for (const TestLayer& l : layers) {
    layer_descriptors_.push_back({l.norm.tensor(), l.in_proj.tensor(), l.in_proj_bias.tensor(), l.conv_weight.tensor(),
                                  l.conv_bias.tensor(), l.x_proj.tensor(), l.dt_proj.tensor(), l.dt_bias.tensor(),
                                  l.a_log.tensor(), l.d.tensor(), l.mixer_norm.tensor(), l.out_proj.tensor(),
                                  l.out_proj_bias.tensor()});
  }
  descriptors_ = {sizeof descriptors_, embedding.tensor(), norm_f.tensor(), lm_head.tensor(),
                  layer_descriptors_.data()};
  return descriptors_;
}

Recurrence::Recurrence(const TinyModel& model)
    : conv(static_cast<size_t>(model.conv_size())), ssm(static_cast<size_t>(model.ssm_size())), m_(model) {}

std::vector<double> Recurrence::step(int32_t token) {
  const int64_t D = m_.config.d_model;
  std::vector<double> x;
  for (int64_t i = 0; i < D; ++i) x.push_back(m_.embedding[token * D + i]);
  for (int64_t l = 0; l < m_.config.n_layer; ++l) {
    const auto y = mix(l, norm(x, &m_.layers[static_cast<size_t>(l)].norm, double{m_.config.norm_eps}));
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  const auto h = norm(x, &m_.norm_f, double{m_.config.norm_eps});
  return multiply(m_.lm_head.present() ? m_.lm_head : m_.embedding, h, {});
}

std::vector<double> Recurrence::mix(int64_t layer, const std::vector<double>& u) {
  return m_.config.family == M4J_MAMBA2 ? mamba2(layer, u) : mamba1(layer, u);
}

std::vector<double> Recurrence::convolve(int64_t layer, const std::vector<double>& x) {
  const TestLayer& w = m_.layers[static_cast<size_t>(layer)];
  const int64_t K = m_.config.d_conv, C = m_.conv_channels();
  std::vector<double> y;
  for (int64_t c = 0; c < C; ++c) {
    double* past = conv.data() + (layer * C + c) * (K - 1);
    std::vector<double> window(past, past + K - 1);
    window.push_back(x[static_cast<size_t>(c)]);
    double sum = w.conv_bias.present() ? w.conv_bias[c] : 0;
    for (int64_t k = 0; k < K; ++k) sum += w.conv_weight[c * K + k] * window[static_cast<size_t>(k)];
    std::copy(window.begin() + 1, window.end(), past);
    y.push_back(silu(sum));
  }
  return y;
}

std::vector<double> Recurrence::mamba1(int64_t layer, const std::vector<double>& u) {
  const TestLayer& w = m_.layers[static_cast<size_t>(layer)];
  const m4j_model_config& c = m_.config;
  const int64_t E = c.d_inner, N = c.d_state, R = c.dt_rank;
  const auto xz = multiply(w.in_proj, u, w.in_proj_bias);
  const auto x = convolve(layer, part(xz, 0, E));
  const auto dbc = multiply(w.x_proj, x, {});
  auto dt = part(dbc, 0, R), B = part(dbc, R, N), C = part(dbc, R + N, N);
  if (c.family == M4J_FALCON_MAMBA) {
    for (auto* v : {&dt, &B, &C}) *v = norm(*v, nullptr, double{c.mixer_norm_eps});
  }
  const auto delta = multiply(w.dt_proj, dt, w.dt_bias);
  std::vector<double> y;
  for (int64_t e = 0; e < E; ++e) {
    const size_t i = static_cast<size_t>(e);
    const double step = softplus(delta[i]);
    double sum = w.d[e] * x[i];
    for (int64_t n = 0; n < N; ++n) {
      const size_t k = static_cast<size_t>(n);
      double& h = ssm[static_cast<size_t>((layer * E + e) * N + n)];
      h = std::exp(-std::exp(w.a_log[e * N + n]) * step) * h + step * B[k] * x[i];
      sum += C[k] * h;
    }
    y.push_back(sum * silu(xz[static_cast<size_t>(E + e)]));
  }
  return multiply(w.out_proj, y, w.out_proj_bias);
}

std::vector<double> Recurrence::mamba2(int64_t layer, const std::vector<double>& u) {
  const TestLayer& w = m_.layers[static_cast<size_t>(layer)];
  const m4j_model_config& c = m_.config;
  const int64_t E = c.d_inner, N = c.d_state, P = c.headdim, channels = m_.conv_channels();
  const auto proj = multiply(w.in_proj, u, w.in_proj_bias);
  const auto xbc = convolve(layer, part(proj, E, channels));
  std::vector<double> y;
  for (int64_t e = 0; e < E; ++e) {
    const int64_t head = e / P, group = head / (c.n_heads / c.n_groups);
    const double raw = softplus(proj[static_cast<size_t>(E + channels + head)] + w.dt_bias[head]);
    const double step = std::clamp(raw, double{c.dt_min}, double{c.dt_max});
    const double x = xbc[static_cast<size_t>(e)], decay = std::exp(-std::exp(w.a_log[head]) * step);
    double sum = w.d[head] * x;
    for (int64_t n = 0; n < N; ++n) {
      double& h = ssm[static_cast<size_t>((layer * E + e) * N + n)];
      h = decay * h + step * x * xbc[static_cast<size_t>(E + group * N + n)];
      sum += h * xbc[static_cast<size_t>(E + (c.n_groups + group) * N + n)];
    }
    y.push_back(sum * silu(proj[static_cast<size_t>(e)]));
  }
  return multiply(w.out_proj, norm(y, &w.mixer_norm, double{c.norm_eps}, c.n_groups), w.out_proj_bias);
}

double relative_error(const std::vector<float>& actual, const std::vector<double>& expected) {
  if (actual.size() != expected.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, size = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

}  // namespace m4j::test
