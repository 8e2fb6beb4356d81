#include "model/self_test.h"

#include <cmath>
#include <deque>
#include <limits>
#include <mutex>
#include <set>
#include <vector>

#include "model/advance.h"
#include "ops/half.h"

namespace m4j {
namespace {

// A model of two layers with random weights, the same in every process.
class TinyWeights {
 public:
  TinyWeights(bool mamba2, DType matrices) : matrices_(matrices) {
    config.struct_size = sizeof config;
    config.family = mamba2 ? M4J_MAMBA2 : M4J_MAMBA1;
    config.n_layer = kLayers;
    config.vocab_size = 64;
    config.d_model = 64;
    config.d_inner = 128;
    config.d_state = 16;
    config.d_conv = 4;
    config.norm_eps = 1e-5f;
    const int64_t D = config.d_model, E = config.d_inner, N = config.d_state;
    if (mamba2) {
      config.n_heads = 4;
      config.headdim = 32;
      config.n_groups = 1;
      config.chunk_size = 64;
      config.dt_max = std::numeric_limits<float>::infinity();
    } else {
      config.dt_rank = 8;
    }
    const int64_t H = config.n_heads, R = config.dt_rank, C = mamba2 ? E + 2 * N : E;
    for (m4j_layer_weights& l : layers_) {
      l = {};
      l.norm = vector(D, 0.5f, 1);
      l.in_proj = matrix(mamba2 ? 2 * E + 2 * N + H : 2 * E, D);
      l.conv_weight = tensor(DType::kF32, {C, config.d_conv}, 0.5f);
      l.conv_bias = vector(C, 0.5f);
      l.out_proj = matrix(D, E);
      l.d = vector(mamba2 ? H : E, 1);
      l.dt_bias = vector(mamba2 ? H : E, 1);
      if (mamba2) {
        l.a_log = vector(H, 1);
        l.mixer_norm = vector(E, 0.5f, 1);
      } else {
        l.a_log = tensor(DType::kF32, {E, N}, 1);
        l.x_proj = matrix(R + 2 * N, E);
        l.dt_proj = matrix(E, R);
      }
    }
    weights = {sizeof weights, matrix(config.vocab_size, D), vector(D, 0.5f, 1), {}, layers_};
  }
  TinyWeights(const TinyWeights&) = delete;

  m4j_model_config config{};
  m4j_model_weights weights{};

 private:
  static constexpr int64_t kLayers = 2;

  m4j_tensor tensor(DType dtype, std::vector<int64_t> shape, float scale, float center = 0) {
    m4j_tensor t{};
    t.dtype = static_cast<int32_t>(dtype);
    t.rank = static_cast<int32_t>(shape.size());
    int64_t count = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      t.shape[d] = shape[static_cast<std::size_t>(d)];
      t.strides[d] = count;
      count *= t.shape[d];
    }
    std::vector<float>& values = storage_.emplace_back(static_cast<std::size_t>(count));
    for (std::size_t i = 0; i < values.size(); ++i) {
      random_ = random_ * 6364136223846793005u + 1442695040888963407u;
      const float value = center + scale * (static_cast<float>(random_ >> 40) * 0x1p-23f - 1);
      if (dtype == DType::kF32) {
        values[i] = value;
      } else {
        reinterpret_cast<uint16_t*>(values.data())[i] = f32_to_bf16(value);
      }
    }
    t.data = values.data();
    return t;
  }
  m4j_tensor vector(int64_t n, float scale, float center = 0) { return tensor(DType::kF32, {n}, scale, center); }
  m4j_tensor matrix(int64_t rows, int64_t columns) {
    return tensor(matrices_, {rows, columns}, 2 / std::sqrt(static_cast<float>(columns)));
  }

  const DType matrices_;
  uint64_t random_ = 1;
  std::deque<std::vector<float>> storage_;
  m4j_layer_weights layers_[kLayers];
};

// Logits of two sequences after two tokens, and after each of two steps. So few do without cuBLASLt, whose start takes
// longer than all of this and which the GPU's part of this library tests on its own.
std::vector<float> logits_of(const std::shared_ptr<Engine>& engine, const TinyWeights& tiny) {
  const auto model = std::make_shared<const Model>(engine, tiny.config, tiny.weights);
  States states(model, 0);
  const m4j_slot slots[] = {states.take(), states.take()};
  std::vector<float> logits;
  int32_t tokens[4];
  for (int32_t i = 0; i < 4; ++i) tokens[i] = i * 37 % static_cast<int32_t>(tiny.config.vocab_size);
  for (const int64_t lengths : {2, 1, 1}) {
    const int64_t offsets[] = {0, lengths, 2 * lengths};
    m4j_advance_args args{};
    args.struct_size = sizeof args;
    args.n_seqs = 2;
    args.slots = slots;
    args.tokens = tokens;
    args.offsets = offsets;
    args.logits_mode = M4J_LOGITS_LAST;
    args.logits_capacity = 2 * tiny.config.vocab_size;
    logits.resize(logits.size() + static_cast<std::size_t>(args.logits_capacity));
    args.logits = logits.data() + static_cast<int64_t>(logits.size()) - args.logits_capacity;
    advance(states, args);
  }
  return logits;
}

void check_model(const std::shared_ptr<Engine>& engine, int32_t ordinal, bool mamba2, DType dtype) {
  const char* const name = mamba2 ? "Mamba-2" : "Mamba-1";
  const TinyWeights tiny(mamba2, dtype);
  const auto reference = std::make_shared<Engine>(1, reference_ops(), nullptr, EngineLog{});
  const std::vector<float> exact = logits_of(reference, tiny), actual = logits_of(engine, tiny);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const double d = double{actual[i]} - exact[i];
    difference += d * d;
    norm += double{exact[i]} * exact[i];
  }
  const double error = std::sqrt(difference / norm), allowed = dtype == DType::kF32 ? 1e-4 : 5e-2;
  if (error <= allowed) return;
  fail(M4J_ERR_UNSUPPORTED,
       "cuda:%d fails the self-test of a %s model in %s: its logits are %.2g away from the reference, allowed are %.2g",
       ordinal, name, dtype == DType::kF32 ? "float32" : "bfloat16", error, allowed);
}

}  // namespace

void self_test_models(const std::shared_ptr<Engine>& engine, int32_t ordinal) {
  static std::mutex mutex;
  static std::set<int32_t> passed;
  const std::lock_guard<std::mutex> lock(mutex);
  if (passed.count(ordinal) != 0) return;
  for (const bool mamba2 : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) check_model(engine, ordinal, mamba2, dtype);
  }
  passed.insert(ordinal);
}

}  // namespace m4j
