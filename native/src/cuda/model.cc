#include "cuda/model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "ops/cuda/convert.h"
#include "ops/cuda/copy.h"

namespace m4j::cuda {
namespace {

DType activation_dtype(DType weights) { return is_quantised(weights) ? DType::kBF16 : weights; }

void check_dimensions(const Config& c) {
  const auto need_multiple = [](int64_t size, const char* name) {
    if (size % kPadding != 0) {
      fail(M4J_ERR_UNSUPPORTED, "config.%s: is %lld, the GPU needs a multiple of %lld", name,
           static_cast<long long>(size), static_cast<long long>(kPadding));
    }
  };
  need_multiple(c.d_model, "d_model");
  need_multiple(c.d_inner, "d_inner");
  need_multiple(c.d_state, "d_state");
  if (c.is_mamba2()) {
    need_multiple(c.headdim, "headdim");
  } else if (c.d_state > kMaxDState) {
    fail(M4J_ERR_UNSUPPORTED, "config.d_state: is %lld, the GPU takes up to %lld for this family",
         static_cast<long long>(c.d_state), static_cast<long long>(kMaxDState));
  }
  if (c.d_conv < 2 || c.d_conv > 8) {
    fail(M4J_ERR_UNSUPPORTED, "config.d_conv: is %lld, the GPU takes 2 ... 8", static_cast<long long>(c.d_conv));
  }
}

// A part of a matrix's rows, and how many zero rows follow it.
struct Part {
  int64_t rows, padding;
};

// Walks over all weights twice: once to measure (`memory` null), once to fill.
class Uploader {
 public:
  Uploader(Engine& engine, DType dtype, char* memory, char* staging)
      : engine_(engine), dtype_(dtype), memory_(memory), staging_(staging) {}

  int64_t used() const { return used_; }
  int64_t largest_source() const { return largest_source_; }

  const float* vector(const FloatBuffer& host, int64_t padding = 0) {
    if (host.data() == nullptr) return nullptr;
    char* out = take((host.size() + padding) * 4);
    if (out != nullptr) engine_.transfers.upload(out, host.data(), host.size() * 4, engine_.stream);
    return reinterpret_cast<const float*>(out);
  }

  // With `columns` of at least those of the host's matrix. Quantised ones stay so unless they are padded in columns,
  // are looked up row by row, or meet float32 activations.
  DeviceMatrix matrix(const Matrix& host, std::initializer_list<Part> parts, int64_t columns, bool lookup = false) {
    DeviceMatrix m;
    const bool keeps_codes =
        is_quantised(host.dtype) && columns == host.columns && !lookup && dtype_ != DType::kF32;
    m.dtype = keeps_codes ? DType::kQ8_0 : dtype_;
    m.columns = columns;
    for (const Part& p : parts) m.rows += p.rows + p.padding;
    char* data = take(m.dtype == DType::kQ8_0 ? m.rows * columns : dtype_bytes(m.dtype, m.rows * columns));
    char* scales = m.dtype == DType::kQ8_0 ? take(m.rows * columns / kQuantBlock * 2) : nullptr;
    m.data = data;
    m.scales = scales;
    const int64_t row_bytes = dtype_bytes(host.dtype, host.columns);
    largest_source_ = std::max(largest_source_, host.rows * row_bytes);
    if (data == nullptr) return m;
    engine_.transfers.upload(staging_, host.data, host.rows * row_bytes, engine_.stream);
    int64_t from = 0, to = 0;
    for (const Part& p : parts) {
      const int64_t offset = to * columns;
      convert({.from = host.dtype,
               .source = staging_ + from * row_bytes,
               .rows = p.rows,
               .columns = host.columns,
               .to = m.dtype,
               .out = data + (m.dtype == DType::kQ8_0 ? offset : dtype_bytes(m.dtype, offset)),
               .ld_out = columns,
               .scales = scales == nullptr ? nullptr : scales + offset / kQuantBlock * 2},
              engine_.stream);
      from += p.rows;
      to += p.rows + p.padding;
    }
    return m;
  }

 private:
  char* take(int64_t bytes) {
    char* result = memory_ == nullptr ? nullptr : memory_ + used_;
    used_ += align(bytes);
    return result;
  }
  Engine& engine_;
  const DType dtype_;
  char* const memory_;
  char* const staging_;
  int64_t used_ = 0;
  int64_t largest_source_ = 0;
};

Layer upload_layer(Uploader& up, const Config& c, const m4j::Layer& w) {
  Layer l{};
  l.norm = up.vector(w.norm);
  const int64_t heads_padding = c.is_mamba2() ? padded(c.n_heads) - c.n_heads : 0;
  l.in_proj = up.matrix(w.in_proj, {{c.in_proj_rows(), heads_padding}}, c.d_model);
  l.in_proj_bias = up.vector(w.in_proj_bias, heads_padding);
  l.conv_weight = up.vector(w.conv_weight);
  l.conv_bias = up.vector(w.conv_bias);
  l.dt_bias = up.vector(w.dt_bias);
  l.A = up.vector(w.A);
  l.D = up.vector(w.D);
  l.out_proj = up.matrix(w.out_proj, {{c.d_model, 0}}, c.d_inner);
  l.out_proj_bias = up.vector(w.out_proj_bias);
  if (c.is_mamba2()) {
    l.mixer_norm = up.vector(w.mixer_norm);
  } else {
    const int64_t rank = padded(c.dt_rank);
    l.x_proj = up.matrix(w.x_proj, {{c.dt_rank, rank - c.dt_rank}, {2 * c.d_state, 0}}, c.d_inner);
    l.dt_proj = up.matrix(w.dt_proj, {{c.d_inner, 0}}, rank);
  }
  return l;
}

DecodeLayer decode_layer(const Layer& l, const void* x_proj) {
  return {l.norm,  l.in_proj.data, l.in_proj_bias, l.conv_weight, l.conv_bias,  x_proj, l.dt_proj.data,
          l.dt_bias, l.A,          l.D,            l.mixer_norm,  l.out_proj.data, l.out_proj_bias};
}

int64_t bytes_between(const void* a, const void* b) { return static_cast<const char*>(b) - static_cast<const char*>(a); }

// Whether the arrays of each layer lie as far behind those of the layer before, and are the same ones.
bool lie_alike(const std::vector<Layer>& layers) {
  constexpr std::size_t kPointers = sizeof(DecodeLayer) / sizeof(void*);
  using Pointers = std::array<const char*, kPointers>;
  const auto pointers = [](const Layer& l) { return std::bit_cast<Pointers>(decode_layer(l, nullptr)); };
  const Pointers first = pointers(layers.front());
  for (std::size_t i = 1; i < layers.size(); ++i) {
    const Pointers these = pointers(layers[i]);
    const int64_t distance = bytes_between(layers[0].norm, layers[1].norm) * static_cast<int64_t>(i);
    for (std::size_t k = 0; k < kPointers; ++k) {
      if (these[k] != (first[k] == nullptr ? nullptr : first[k] + distance)) return false;
    }
  }
  return true;
}

}  // namespace

Model::Model(Engine& engine_, const m4j::Model& host)
    : engine(engine_), config(host.config), dtype(activation_dtype(host.layers.front().in_proj.dtype)) {
  check_dimensions(config);
  const auto walk = [&](Uploader& up) {
    // A tied embedding is both: the table is looked up in the activations' dtype, the head may be quantised.
    const bool tied = host.lm_head.data == host.embedding.data && !is_quantised(host.embedding.dtype);
    embedding = up.matrix(host.embedding, {{config.vocab_size, 0}}, config.d_model, true);
    lm_head = tied ? embedding : up.matrix(host.lm_head, {{config.vocab_size, 0}}, config.d_model);
    norm_f = up.vector(host.norm_f);
    layers.clear();
    for (const m4j::Layer& l : host.layers) layers.push_back(upload_layer(up, config, l));
  };
  Uploader measure(engine, dtype, nullptr, nullptr);
  walk(measure);
  const DeviceBuffer staging(measure.largest_source(), "staging of the weights", &engine.bytes);
  memory_ = DeviceBuffer(measure.used(), "weights", &engine.bytes);
  check(cudaMemsetAsync(memory_.data(), 0, static_cast<std::size_t>(memory_.bytes()), engine.stream), "cudaMemset");
  Uploader upload(engine, dtype, memory_.data(), staging.data());
  walk(upload);

  const auto workspace = [&](const DeviceMatrix& m) { return linear_workspace(m, dtype, INT64_MAX); };
  neediest = lm_head;
  for (const Layer& l : layers) {
    for (const DeviceMatrix& m : {l.in_proj, l.x_proj, l.dt_proj, l.out_proj}) {
      if (workspace(m) > workspace(neediest)) neediest = m;
    }
  }
  prepare_decode();
  engine.wait();
}

void Model::prepare_decode() {
  for (const Layer& l : layers) {
    for (const DeviceMatrix& m : {l.in_proj, l.x_proj, l.dt_proj, l.out_proj, lm_head}) {
      if (m.rows != 0 && m.dtype != dtype) return;
    }
  }
  if (!lie_alike(layers)) return;
  decode_layer_bytes_ = layers.size() == 1 ? 0 : bytes_between(layers[0].norm, layers[1].norm);
  // Four sequences of Mamba-1 in 16 bits take one kernel after the other faster (bench/NOTES-gpu.md).
  decode_tokens_ = config.is_mamba2() || dtype == DType::kF32 ? kMaxDecodeTokens : kMaxDecodeTokens - 1;
  for (DecodeStepArgs args; decode_tokens_ > 0; --decode_tokens_) {
    decode_step_args(decode_tokens_, &args);
    if (decode_step_fits(args)) break;
  }
  if (decode_tokens_ == 0) return;
  const int64_t rows = layers.front().x_proj.rows, columns = layers.front().x_proj.columns;
  decode_x_proj_bytes_ = align(dtype_bytes(dtype, rows * columns));
  decode_x_proj_ = DeviceBuffer(config.n_layer * decode_x_proj_bytes_, "weights", &engine.bytes);
  decode_layer_ = decode_layer(layers.front(), decode_x_proj_.data());
  if (char* x_proj = decode_x_proj_.data()) {
    for (const Layer& l : layers) {
      const Array from{dtype, const_cast<void*>(l.x_proj.data), {1, 1, columns, rows}, {0, 0, 1, columns}};
      copy(from, {dtype, x_proj, {1, 1, columns, rows}, {0, 0, rows, 1}}, engine.stream);
      x_proj += decode_x_proj_bytes_;
    }
  }
  for (int64_t tokens = 1; tokens <= decode_tokens_; ++tokens) {
    DecodeStepArgs args;
    decode_step_args(tokens, &args);
    DeviceBuffer& memory = decode_workspaces_.emplace_back(decode_step_workspace(args), "workspace", &engine.bytes);
    check(cudaMemsetAsync(memory.data(), 0, static_cast<std::size_t>(memory.bytes()), engine.stream), "cudaMemset");
  }
}

bool Model::decode_step_args(int64_t tokens, DecodeStepArgs* args) const {
  if (tokens > decode_tokens_) return false;
  const Config& c = config;
  const auto i = [](int64_t n) { return static_cast<int>(n); };
  *args = {.dtype = dtype,
           .mamba2 = c.is_mamba2(),
           .falcon = c.family == M4J_FALCON_MAMBA,
           .layer = decode_layer_,
           .layer_bytes = decode_layer_bytes_,
           .x_proj_bytes = decode_x_proj_bytes_,
           .n_layer = i(c.n_layer),
           .vocab_size = i(c.vocab_size),
           .d_model = i(c.d_model),
           .d_inner = i(c.d_inner),
           .d_state = i(c.d_state),
           .d_conv = i(c.d_conv),
           .dt_rank = i(c.dt_rank),
           .dt_rank_padded = i(padded(c.dt_rank)),
           .n_heads = i(c.n_heads),
           .headdim = i(c.headdim),
           .n_groups = i(c.n_groups),
           .in_proj_rows = i(proj_ld()),
           .norm_eps = c.norm_eps,
           .mixer_norm_eps = c.mixer_norm_eps,
           .dt_min = c.dt_min,
           .dt_max = c.dt_max,
           .embedding = embedding.data,
           .norm_f = norm_f,
           .lm_head = lm_head.data,
           .tokens = i(tokens),
           .ids = {},
           .slots = {},
           .first_tag = 0,
           .states = nullptr,
           .state_type = c.ssm_type(),
           .slot_stride = 0,
           .conv_state = c.conv_state(),
           .layer_conv_state = c.layer_conv_state(),
           .layer_ssm_state = c.layer_ssm_state(),
           .logits = nullptr,
           .done = nullptr,
           .workspace = static_cast<std::size_t>(tokens) <= decode_workspaces_.size()
                            ? decode_workspaces_[static_cast<std::size_t>(tokens) - 1].data()
                            : nullptr};
  return true;
}

}  // namespace m4j::cuda
