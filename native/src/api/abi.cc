// m4j_abi_layout: the ABI as this compiler sees it. Sizes, offsets and types come from sizeof, offsetof and decltype;
// only names are listed here. A struct whose fields are not all listed does not compile.
#include <cstdarg>
#include <cstddef>
#include <cstdio>
#include <type_traits>

#include "mamba4j.h"

namespace m4j {
namespace {

template <typename T>
constexpr const char* type_name() {
  if constexpr (std::is_void_v<T>) {
    return "void";
  } else if constexpr (std::is_pointer_v<T>) {
    return "ptr";
  } else if constexpr (std::is_same_v<T, int32_t>) {
    return "i32";
  } else if constexpr (std::is_same_v<T, int64_t>) {
    return "i64";
  } else if constexpr (std::is_same_v<T, uint64_t>) {
    return "u64";
  } else {
    static_assert(std::is_same_v<T, float>, "a type that the layout cannot name");
    return "f32";
  }
}

class Layout {
 public:
  Layout();
  const char* text() const { return text_; }

 private:
  __attribute__((format(printf, 2, 3))) void line(const char* format, ...) {
    va_list args;
    va_start(args, format);
    const int length = std::vsnprintf(text_ + used_, sizeof text_ - used_, format, args);
    va_end(args);
    if (length > 0 && used_ + static_cast<std::size_t>(length) < sizeof text_) used_ += static_cast<std::size_t>(length);
  }

  template <typename Return, typename... Args>
  void function(const char* name, Return (*)(Args...)) {
    line("function %s %s(", name, type_name<Return>());
    int index = 0;
    (line(index++ == 0 ? "%s" : ",%s", type_name<Args>()), ...);
    line(")\n");
  }

  char text_[16384] = {};
  std::size_t used_ = 0;
};

#define M4J_STRUCT(name, fields) \
  {                              \
    using S = name;              \
    constexpr const char* kName = #name;           \
    line("struct %s %zu\n", kName, sizeof(S));     \
    constexpr std::size_t kListed = 0 fields(M4J_FIELD_SIZE); \
    static_assert(kListed == sizeof(S), #name " has fields or padding that are not listed"); \
    fields(M4J_FIELD_LINE)       \
  }
#define M4J_FIELD_SIZE(field) +sizeof(S::field)
#define M4J_FIELD_LINE(field) line("field %s.%s %zu %zu\n", kName, #field, offsetof(S, field), sizeof(S::field));
#define M4J_FUNCTION(name) function(#name, &name);
#define M4J_CONSTANT(name) line("constant %s %lld\n", #name, static_cast<long long>(name));

#define M4J_ERROR_FIELDS(f) f(code) f(reserved) f(message)
#define M4J_TENSOR_FIELDS(f) f(data) f(dtype) f(rank) f(shape) f(strides)
#define M4J_ENGINE_OPTIONS_FIELDS(f) \
  f(struct_size) f(device) f(device_index) f(threads) f(reserved) f(simd_target) f(cuda_library) f(log) \
  f(log_user)
#define M4J_MODEL_CONFIG_FIELDS(f)                                                                               \
  f(struct_size) f(family) f(state_type) f(activation_type) f(reserved) f(n_layer) f(vocab_size) f(d_model)      \
  f(d_inner) f(d_state) f(d_conv) f(dt_rank) f(n_heads) f(headdim) f(n_groups) f(chunk_size) f(norm_eps)         \
  f(mixer_norm_eps) f(dt_min) f(dt_max)
#define M4J_LAYER_WEIGHTS_FIELDS(f)                                                                              \
  f(norm) f(in_proj) f(in_proj_bias) f(conv_weight) f(conv_bias) f(x_proj) f(dt_proj) f(dt_bias) f(a_log) f(d)   \
  f(mixer_norm) f(out_proj) f(out_proj_bias)
#define M4J_MODEL_WEIGHTS_FIELDS(f) f(struct_size) f(embedding) f(norm_f) f(lm_head) f(layers)
#define M4J_ADVANCE_ARGS_FIELDS(f)                                                                               \
  f(struct_size) f(n_seqs) f(slots) f(tokens) f(offsets) f(logits_mode) f(reserved) f(logits) f(logits_capacity) \
  f(samplings) f(sampled) f(log_probs)
#define M4J_SAMPLING_FIELDS(f)                                                                                   \
  f(struct_size) f(candidates) f(seed) f(draw) f(top_k) f(temperature) f(top_p) f(min_p) f(repetition_penalty)   \
  f(recent) f(n_recent)
#define M4J_SELECTIVE_SCAN_FIELDS(f)                                                                             \
  f(struct_size) f(delta_softplus) f(reserved) f(u) f(delta) f(A) f(B) f(C) f(D) f(z) f(delta_bias)              \
  f(initial_state) f(out) f(last_state)
#define M4J_SSD_FIELDS(f)                                                                                        \
  f(struct_size) f(dt_softplus) f(reserved) f(chunk_size) f(dt_min) f(dt_max) f(x) f(dt) f(A) f(B) f(C) f(D)     \
  f(dt_bias) f(initial_state) f(out) f(last_state)
#define M4J_CAUSAL_CONV1D_FIELDS(f)                                                                              \
  f(struct_size) f(silu) f(reserved) f(x) f(weight) f(bias) f(initial_window) f(out) f(last_window)
#define M4J_RMS_NORM_FIELDS(f) f(struct_size) f(n_groups) f(eps) f(reserved) f(x) f(gate) f(weight) f(out)
#define M4J_LINEAR_FIELDS(f) f(struct_size) f(x) f(weight) f(bias) f(out)
#define M4J_SAMPLE_FIELDS(f) f(struct_size) f(logits) f(samplings) f(tokens) f(log_probs)
#define M4J_COMPLETION_FIELDS(f) f(tag) f(error)

#define M4J_FUNCTIONS(f)                                                                                         \
  f(m4j_abi_version) f(m4j_abi_layout) f(m4j_version) f(m4j_native_bytes) f(m4j_simd_targets)                    \
  f(m4j_engine_create) f(m4j_engine_release) f(m4j_engine_threads) f(m4j_engine_simd_target)                     \
  f(m4j_engine_device_name) f(m4j_engine_device_bytes)                                                           \
  f(m4j_buffer_create) f(m4j_buffer_release) f(m4j_buffer_data) f(m4j_copy_bytes)                                \
  f(m4j_queue_create) f(m4j_queue_release) f(m4j_queue_close) f(m4j_queue_advance) f(m4j_queue_next)             \
  f(m4j_model_create) f(m4j_model_release) f(m4j_model_state_bytes) f(m4j_model_conv_state_size)                 \
  f(m4j_model_ssm_state_size) f(m4j_model_fingerprint) f(m4j_states_create) f(m4j_states_release)                \
  f(m4j_slot_take) f(m4j_slot_release) f(m4j_slot_reset) f(m4j_slot_copy) f(m4j_slot_position)                   \
  f(m4j_slot_export_size) f(m4j_slot_export) f(m4j_slot_import) f(m4j_slot_read) f(m4j_advance)                  \
  f(m4j_selective_scan) f(m4j_ssd) f(m4j_causal_conv1d) f(m4j_rms_norm) f(m4j_linear) f(m4j_quantize)           \
  f(m4j_embedding) f(m4j_softmax) f(m4j_log_softmax) f(m4j_sample) f(m4j_copy)

#define M4J_CONSTANTS(f)                                                                                         \
  f(M4J_ABI_VERSION) f(M4J_MAX_RANK) f(M4J_ERROR_MESSAGE_SIZE) f(M4J_OK) f(M4J_ERR_INVALID_ARGUMENT)            \
  f(M4J_ERR_STALE_SLOT) f(M4J_ERR_BUSY) f(M4J_ERR_EXHAUSTED) f(M4J_ERR_OUT_OF_MEMORY) f(M4J_ERR_UNSUPPORTED)    \
  f(M4J_ERR_MISMATCH) f(M4J_ERR_INTERNAL) f(M4J_F32) f(M4J_F16) f(M4J_BF16) f(M4J_Q8_0) f(M4J_Q4_0)             \
  f(M4J_TO_DEVICE) f(M4J_TO_HOST) f(M4J_ON_DEVICE)                                                              \
  f(M4J_DEVICE_CPU) f(M4J_DEVICE_CUDA) f(M4J_LOG_DEBUG) f(M4J_LOG_INFO) f(M4J_LOG_WARNING) f(M4J_LOG_ERROR)  \
  f(M4J_MAMBA1) f(M4J_FALCON_MAMBA) f(M4J_MAMBA2) f(M4J_LOGITS_NONE) f(M4J_LOGITS_LAST) f(M4J_LOGITS_ALL)

Layout::Layout() {
  M4J_STRUCT(m4j_error, M4J_ERROR_FIELDS)
  M4J_STRUCT(m4j_tensor, M4J_TENSOR_FIELDS)
  M4J_STRUCT(m4j_engine_options, M4J_ENGINE_OPTIONS_FIELDS)
  M4J_STRUCT(m4j_model_config, M4J_MODEL_CONFIG_FIELDS)
  M4J_STRUCT(m4j_layer_weights, M4J_LAYER_WEIGHTS_FIELDS)
  M4J_STRUCT(m4j_model_weights, M4J_MODEL_WEIGHTS_FIELDS)
  M4J_STRUCT(m4j_sampling, M4J_SAMPLING_FIELDS)
  M4J_STRUCT(m4j_advance_args, M4J_ADVANCE_ARGS_FIELDS)
  M4J_STRUCT(m4j_selective_scan_args, M4J_SELECTIVE_SCAN_FIELDS)
  M4J_STRUCT(m4j_ssd_args, M4J_SSD_FIELDS)
  M4J_STRUCT(m4j_causal_conv1d_args, M4J_CAUSAL_CONV1D_FIELDS)
  M4J_STRUCT(m4j_rms_norm_args, M4J_RMS_NORM_FIELDS)
  M4J_STRUCT(m4j_linear_args, M4J_LINEAR_FIELDS)
  M4J_STRUCT(m4j_sample_args, M4J_SAMPLE_FIELDS)
  M4J_STRUCT(m4j_completion, M4J_COMPLETION_FIELDS)
  M4J_FUNCTIONS(M4J_FUNCTION)
  M4J_CONSTANTS(M4J_CONSTANT)
}

}  // namespace
}  // namespace m4j

const char* m4j_abi_layout(void) {
  static const m4j::Layout layout;
  return layout.text();
}
