// Models of the published shapes with random weights made in memory, driven through the C ABI like a user's.
#pragma once

#include <mamba4j.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace m4j::bench {

struct Shape {
  const char* name;
  int32_t family;
  int64_t n_layer, d_model, d_state, dt_rank, headdim, vocab_size;
};

// Published shapes: mamba-130m … mamba-2.8b, mamba2-130m … mamba2-2.7b, and two small ones for latency.
const std::vector<Shape>& shapes();
const Shape* find_shape(const std::string& name);

class RandomModel {
 public:
  static constexpr int32_t kOnCpu = -1;
  // Matrices in `dtype` (M4J_F32 ... M4J_Q4_0), SSM states in `state_type`, everything else float32, activations
  // perhaps rounded to `activation_type`. Throws std::runtime_error.
  RandomModel(const Shape& shape, int32_t dtype, int threads, const char* simd_target = nullptr,
              int32_t cuda_device = kOnCpu, int32_t state_type = M4J_F32, int32_t activation_type = M4J_F32);
  // The same weights on another engine.
  RandomModel(const RandomModel& weights, int threads, const char* simd_target, int32_t cuda_device = kOnCpu,
              int32_t state_type = M4J_F32);
  ~RandomModel();
  RandomModel& operator=(const RandomModel&) = delete;

  m4j_slot take();
  void reset(m4j_slot slot);
  void copy(m4j_slot target, m4j_slot source);
  // One ragged batch of equally long sequences; logits of each last token, [slots, V], unless the mode is
  // M4J_LOGITS_NONE.
  const float* advance(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens,
                       int32_t logits_mode = M4J_LOGITS_LAST);
  // The same, but the model chooses a token for each sequence, with top-p 0.95 unless greedy, and keeps the logits.
  const int32_t* next(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens, float temperature);

  int64_t vocab_size() const { return config_.vocab_size; }
  // Bytes that a decode step must read at least: every matrix once, the head's where there are logits.
  int64_t matrix_bytes(bool with_head = true) const;
  // Floating-point operations of the projections a token, without the head.
  double projection_flops() const;
  int64_t state_bytes() const;

 private:
  struct Weights;
  // Of the layers.
  template <typename Use>
  void for_each_matrix(Use use) const;
  void open(int threads, const char* simd_target, int32_t cuda_device);
  m4j_advance_args args_for(const std::vector<m4j_slot>& slots, const std::vector<int32_t>& tokens);

  m4j_model_config config_;
  std::shared_ptr<const Weights> weights_;
  m4j_engine* engine_ = nullptr;
  m4j_model* model_ = nullptr;
  m4j_states* states_ = nullptr;
  std::vector<float> logits_;
  std::vector<int64_t> offsets_;
  std::vector<m4j_sampling> samplings_;
  std::vector<const m4j_sampling*> sampling_pointers_;
  std::vector<int32_t> sampled_;
};

}  // namespace m4j::bench
