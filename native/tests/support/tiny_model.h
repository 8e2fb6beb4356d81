// Small random models of every family, held in memory, and an independent float64 recurrence for what they compute.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "mamba4j.h"
#include "ops/ops.h"
#include "support/random.h"

namespace m4j::test {

// A weight tensor in its stored dtype.
struct TestWeight {
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;
  std::vector<float> singles;    // one of the two is empty, both if the weight is absent
  std::vector<uint16_t> halves;

  double operator[](int64_t i) const;
  bool present() const { return !singles.empty() || !halves.empty(); }
  m4j_tensor tensor() const;
};

struct TestLayer {
  TestWeight norm, in_proj, in_proj_bias, conv_weight, conv_bias, x_proj, dt_proj, dt_bias, a_log, d, mixer_norm,
      out_proj, out_proj_bias;
};

struct TinyOptions {
  int32_t family = M4J_MAMBA1;
  int64_t d_conv = 4;
  DType dtype = DType::kF32;  // of the matrices
  DType activation_type = DType::kF32;
  bool biases = true;
  bool tied = false;
  int64_t d_model = 0, d_inner = 0, d_state = 0;  // 0: as the options below have it
  int64_t n_groups = 3;    // Mamba-2
  int64_t chunk_size = 3;  // Mamba-2
  float dt_min = 0;        // Mamba-2
  float dt_max = std::numeric_limits<float>::infinity();
  bool even = false;  // dimensions that a GPU takes, multiples of 8
  bool wide = false;  // several rows and many columns for each of a GPU's multiprocessors, but no full tile of either
  bool deep = false;  // Mamba-1: more channels than a multiprocessor takes at a time, dt_rank and d_state the largest,
                      // more layers

  std::string name() const;
};

// Dimensions are odd on purpose, unless asked otherwise: nothing is a multiple of a vector.
class TinyModel {
 public:
  TinyModel(const TinyOptions& options, uint64_t seed);
  TinyModel(const TinyModel&) = delete;

  m4j_model_config config;
  TestWeight embedding, norm_f, lm_head;
  std::vector<TestLayer> layers;

  // Descriptors of the weights as they are now; valid until the next call.
  const m4j_model_weights& weights();

  int64_t conv_channels() const;
  int64_t conv_size() const { return config.n_layer * conv_channels() * (config.d_conv - 1); }
  int64_t ssm_size() const { return config.n_layer * config.d_inner * config.d_state; }

 private:
  std::vector<m4j_layer_weights> layer_descriptors_;
  m4j_model_weights descriptors_;
};

// One sequence, token by token, as the papers write the recurrence.
class Recurrence {
 public:
  explicit Recurrence(const TinyModel& model);

  // Logits [V] after this token.
  std::vector<double> step(int32_t token);

  std::vector<double> conv;  // [n_layer, C, K-1], oldest input first
  std::vector<double> ssm;   // [n_layer, E, N] or [n_layer, H, P, N]

 private:
  std::vector<double> mix(int64_t layer, const std::vector<double>& u);
  std::vector<double> convolve(int64_t layer, const std::vector<double>& x);
  std::vector<double> mamba1(int64_t layer, const std::vector<double>& u);
  std::vector<double> mamba2(int64_t layer, const std::vector<double>& u);
  const TinyModel& m_;
};

// Norm of the difference over the norm of the expected values.
double relative_error(const std::vector<float>& actual, const std::vector<double>& expected);

}  // namespace m4j::test
