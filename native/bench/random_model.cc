#include "random_model.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <thread>

#include "ops/ops.h"


namespace m4j::bench {
namespace {

// splitmix64: fast enough to fill gigabytes.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Uniform with mean 0 and standard deviation `std`.
  float centred(float std) {
    return (static_cast<float>(bits() >> 40) * 0x1p-24f - 0.5f) * (3.4641016f * std);
  }
  float between(float lo, float hi) { return lo + static_cast<float>(bits() >> 40) * 0x1p-24f * (hi - lo); }

 private:
  uint64_t state_;
};

void check(m4j_status status, const m4j_error& err) {
  if (status != M4J_OK) throw std::runtime_error(err.message);
}

// Rounded to nearest; the weights drawn here are neither infinite nor NaN.
uint16_t to_bf16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Cut off, not rounded; below the smallest normal number: zero. Good enough for random weights.
uint16_t to_f16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(v);
  const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xFF) - 112;
  const uint32_t sign = bits >> 16 & 0x8000;
  return static_cast<uint16_t>(exponent <= 0 ? sign : sign | static_cast<uint32_t>(exponent) << 10 | (bits >> 13 & 0x3FF));
}

constexpr int64_t kConv = 4;

}  // namespace

const std::vector<Shape>& shapes() {
  static const std::vector<Shape> all = {
      {"mamba-tiny", M4J_MAMBA1, 3, 128, 16, 8, 0, 512},
      {"mamba-130m", M4J_MAMBA1, 24, 768, 16, 48, 0, 50280},
      {"mamba-370m", M4J_MAMBA1, 48, 1024, 16, 64, 0, 50280},
      {"mamba-1.4b", M4J_MAMBA1, 48, 2048, 16, 128, 0, 50280},
      {"mamba-2.8b", M4J_MAMBA1, 64, 2560, 16, 160, 0, 50280},
      {"mamba2-tiny", M4J_MAMBA2, 3, 128, 64, 0, 32, 512},
      {"mamba2-130m", M4J_MAMBA2, 24, 768, 128, 0, 64, 50288},
      {"mamba2-370m", M4J_MAMBA2, 48, 1024, 128, 0, 64, 50288},
      {"mamba2-1.3b", M4J_MAMBA2, 48, 2048, 128, 0, 64, 50288},
      {"mamba2-2.7b", M4J_MAMBA2, 64, 2560, 128, 0, 64, 50288},
  };
  return all;
}

const Shape* find_shape(const std::string& name) {
  for (const Shape& s : shapes())
    if (name == s.name) return &s;
  return nullptr;
}

struct RandomModel::Weights {
  std::vector<std::vector<uint8_t>> storage;
  std::vector<m4j_layer_weights> layers;
  m4j_model_weights model{};
  int32_t dtype;
  Random random{42};

  m4j_tensor allocate(int32_t type, const std::vector<int64_t>& shape) {
    const int64_t n = elements(shape);
    storage.emplace_back(static_cast<size_t>(n) * (type == M4J_F32 ? 4 : 2));
    m4j_tensor t{};
    t.data = storage.back().data();
    t.dtype = type;
    t.rank = static_cast<int32_t>(shape.size());
    int64_t stride = 1;
    for (size_t d = shape.size(); d-- > 0;) {
      t.shape[d] = shape[d];
      t.strides[d] = stride;
      stride *= shape[d];
    }
    return t;
  }
  static int64_t elements(const std::vector<int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }
  static void set(const m4j_tensor& t, int64_t i, float v) {
    if (t.dtype == M4J_F32) {
      static_cast<float*>(t.data)[i] = v;
    } else {
      static_cast<uint16_t*>(t.data)[i] = t.dtype == M4J_BF16 ? to_bf16(v) : to_f16(v);
    }
  }
  // Rows that are no whole number of blocks stay bfloat16 in a quantised model.
  m4j_tensor matrix(int64_t rows, int64_t cols, float std) {
    if (dtype != M4J_Q8_0 && dtype != M4J_Q4_0) return plain_matrix(dtype, rows, cols, std);
    if (cols % kQuantBlock != 0) return plain_matrix(M4J_BF16, rows, cols, std);
    return quantised_matrix(rows, cols, std);
  }
  // By all processors: billions of numbers.
  m4j_tensor plain_matrix(int32_t type, int64_t rows, int64_t cols, float std) {
    constexpr int64_t kChunk = 1 << 16;  // elements that share a stream of random numbers
    const m4j_tensor t = allocate(type, {rows, cols});
    const int64_t n = rows * cols, chunks = (n + kChunk - 1) / kChunk;
    const uint64_t seed = random.bits();
    std::atomic<int64_t> next{0};
    const auto fill = [&] {
      for (int64_t chunk; (chunk = next++) < chunks;) {
        Random of_chunk(seed ^ Random(static_cast<uint64_t>(chunk)).bits());
        for (int64_t i = chunk * kChunk; i < std::min(n, (chunk + 1) * kChunk); ++i) set(t, i, of_chunk.centred(std));
      }
    };
    std::vector<std::thread> others(std::max(1u, std::thread::hardware_concurrency()) - 1);
    for (std::thread& thread : others) thread = std::thread(fill);
    fill();
    for (std::thread& thread : others) thread.join();
    return t;
  }
  // Random codes with one scale: the same spread of weights without the time to quantise gigabytes.
  m4j_tensor quantised_matrix(int64_t rows, int64_t cols, float std) {
    const int64_t n = rows * cols, block = dtype_bytes(static_cast<DType>(dtype), kQuantBlock);
    storage.emplace_back(static_cast<size_t>(dtype_bytes(static_cast<DType>(dtype), n)));
    const uint16_t scale = to_f16(std * 1.7320508f / (dtype == M4J_Q8_0 ? 127 : 8));
    for (int64_t b = 0; b < n / kQuantBlock; ++b) {
      uint8_t* p = storage.back().data() + b * block;
      std::memcpy(p, &scale, sizeof(scale));
      for (int64_t i = sizeof(scale); i < block; i += 8) {
        const uint64_t codes = random.bits();
        std::memcpy(p + i, &codes, static_cast<size_t>(std::min<int64_t>(8, block - i)));
      }
    }
    m4j_tensor t{};
    t.data = storage.back().data();
    t.dtype = dtype;
    t.rank = 2;
    t.shape[0] = rows, t.shape[1] = cols;
    t.strides[0] = cols, t.strides[1] = 1;
    return t;
  }
  template <typename Draw>
  m4j_tensor small(const std::vector<int64_t>& shape, Draw draw) {
    const m4j_tensor t = allocate(M4J_F32, shape);
    for (int64_t i = 0; i < elements(shape); ++i) set(t, i, draw());
    return t;
  }
};

RandomModel::RandomModel(const Shape& s, int32_t dtype, int threads, const char* simd_target, int32_t cuda_device,
                         int32_t state_type, int32_t activation_type)
    : config_{} {
  const int64_t D = s.d_model, E = 2 * D, N = s.d_state;
  const bool mamba2 = s.family == M4J_MAMBA2;
  const int64_t H = mamba2 ? E / s.headdim : 0, C = mamba2 ? E + 2 * N : E;
  config_.struct_size = sizeof(config_);
  config_.family = s.family;
  config_.state_type = state_type;
  config_.activation_type = activation_type;
  config_.n_layer = s.n_layer;
  config_.vocab_size = s.vocab_size;
  config_.d_model = D;
  config_.d_inner = E;
  config_.d_state = N;
  config_.d_conv = kConv;
  config_.dt_rank = s.dt_rank;
  config_.n_heads = H;
  config_.headdim = s.headdim;
  config_.n_groups = mamba2 ? 1 : 0;
  config_.chunk_size = mamba2 ? 256 : 0;
  config_.norm_eps = 1e-5f;
  if (mamba2) config_.dt_max = std::numeric_limits<float>::infinity();

  auto w = std::make_shared<Weights>();
  Random& r = w->random;
  w->dtype = dtype;
  const auto about_one = [&] { return 1.0f + r.centred(0.1f); };
  const auto dt_bias = [&] {  // softplus of it is log-uniform over 0.001 ... 0.1
    const double dt = std::exp(static_cast<double>(r.between(-6.9f, -2.3f)));
    return static_cast<float>(dt + std::log(-std::expm1(-dt)));
  };
  const float in_std = 1.0f / std::sqrt(static_cast<float>(D)), out_std = 1.0f / std::sqrt(static_cast<float>(E));
  w->model.struct_size = sizeof(w->model);
  w->model.embedding = w->matrix(s.vocab_size, D, 0.02f);
  w->model.norm_f = w->small({D}, about_one);
  for (int64_t i = 0; i < s.n_layer; ++i) {
    m4j_layer_weights l{};
    l.norm = w->small({D}, about_one);
    l.in_proj = w->matrix(mamba2 ? E + C + H : 2 * E, D, in_std);
    l.conv_weight = w->small({C, kConv}, [&] { return r.between(-0.5f, 0.5f); });
    l.conv_bias = w->small({C}, [&] { return r.centred(0.1f); });
    l.out_proj = w->matrix(D, E, out_std);
    if (mamba2) {
      l.dt_bias = w->small({H}, dt_bias);
      l.a_log = w->small({H}, [&] { return std::log(r.between(1.0f, 16.0f)); });
      l.d = w->small({H}, about_one);
      l.mixer_norm = w->small({E}, about_one);
    } else {
      l.x_proj = w->matrix(s.dt_rank + 2 * N, E, 2.0f * out_std);
      l.dt_proj = w->matrix(E, s.dt_rank, 0.5f / std::sqrt(static_cast<float>(s.dt_rank)));
      l.dt_bias = w->small({E}, dt_bias);
      int64_t n = 0;
      l.a_log = w->small({E, N}, [&] { return std::log(static_cast<float>(n++ % N + 1)); });
      l.d = w->small({E}, about_one);
    }
    w->layers.push_back(l);
  }
  w->model.layers = w->layers.data();
  weights_ = std::move(w);
  open(threads, simd_target, cuda_device);
}

RandomModel::RandomModel(const RandomModel& other, int threads, const char* simd_target, int32_t cuda_device,
                         int32_t state_type)
    : config_(other.config_), weights_(other.weights_) {
  config_.state_type = state_type;
  open(threads, simd_target, cuda_device);
}

void RandomModel::open(int threads, const char* simd_target, int32_t cuda_device) {
  m4j_error err{};
  m4j_engine_options options{};
  options.struct_size = sizeof(options);
  options.threads = threads;
  options.simd_target = simd_target;
  if (cuda_device != kOnCpu) {
    options.device = M4J_DEVICE_CUDA;
    options.device_index = cuda_device;
  }
  check(m4j_engine_create(&options, &engine_, &err), err);
  check(m4j_model_create(engine_, &config_, &weights_->model, &model_, &err), err);
  check(m4j_states_create(model_, 0, &states_, &err), err);
}

RandomModel::~RandomModel() {
  m4j_states_release(states_);
  m4j_model_release(model_);
  m4j_engine_release(engine_);
}

m4j_slot RandomModel::take() {
  m4j_error err{};
  m4j_slot slot = 0;
  check(m4j_slot_take(states_, &slot, &err), err);
  return slot;
}

void RandomModel::reset(m4j_slot slot) {
  m4j_error err{};
  check(m4j_slot_reset(states_, slot, &err), err);
}

void RandomModel::copy(m4j_slot target, m4j_slot source) {
  m4j_error err{};
  check(m4j_slot_copy(states_, target, source, &err), err);
}

m4j_advance_args RandomModel::args_for(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens) {
  const int64_t n = static_cast<int64_t>(slots.size()), each = static_cast<int64_t>(tokens.size()) / n;
  offsets_.resize(slots.size() + 1);
  for (int64_t i = 0; i <= n; ++i) offsets_[static_cast<size_t>(i)] = i * each;
  m4j_advance_args args{};
  args.struct_size = sizeof(args);
  args.n_seqs = n;
  args.slots = slots.data();
  args.tokens = tokens.data();
  args.offsets = offsets_.data();
  return args;
}

const int32_t* RandomModel::next(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens,
                                 float temperature) {
  m4j_advance_args args = args_for(slots, tokens);
  samplings_.resize(slots.size());
  sampling_pointers_.resize(slots.size());
  sampled_.resize(slots.size());
  for (size_t i = 0; i < slots.size(); ++i) {
    samplings_[i] = {sizeof(m4j_sampling), 0, i, samplings_[i].draw + 1, 0, temperature, 0.95f, 0, 1, nullptr, 0};
    sampling_pointers_[i] = &samplings_[i];
  }
  args.samplings = sampling_pointers_.data();
  args.sampled = sampled_.data();
  m4j_error err{};
  check(m4j_advance(states_, &args, &err), err);
  return sampled_.data();
}

const float* RandomModel::advance(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens,
                                  int32_t logits_mode) {
  m4j_advance_args args = args_for(slots, tokens);
  logits_.resize(slots.size() * static_cast<size_t>(config_.vocab_size));
  args.logits_mode = logits_mode;
  args.logits = logits_.data();
  args.logits_capacity = static_cast<int64_t>(logits_.size());
  m4j_error err{};
  check(m4j_advance(states_, &args, &err), err);
  return logits_.data();
}

int64_t RandomModel::matrix_bytes(bool with_head) const {
  int64_t bytes = 0;
  for_each_matrix([&](const m4j_tensor& t) { bytes += dtype_bytes(static_cast<DType>(t.dtype), t.shape[0] * t.shape[1]); });
  if (!with_head) return bytes;
  const m4j_tensor& head = weights_->model.embedding;
  return bytes + dtype_bytes(static_cast<DType>(head.dtype), head.shape[0] * head.shape[1]);
}

double RandomModel::projection_flops() const {
  double n = 0;
  for_each_matrix([&](const m4j_tensor& t) { n += static_cast<double>(t.shape[0]) * static_cast<double>(t.shape[1]); });
  return 2 * n;
}

template <typename Use>
void RandomModel::for_each_matrix(Use use) const {
  for (const m4j_layer_weights& l : weights_->layers)
    for (const m4j_tensor* t : {&l.in_proj, &l.x_proj, &l.dt_proj, &l.out_proj})
      if (t->data != nullptr) use(*t);
}

int64_t RandomModel::state_bytes() const { return m4j_model_state_bytes(model_); }

}  // namespace m4j::bench
