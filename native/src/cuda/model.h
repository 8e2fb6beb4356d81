// A model's weights in GPU memory.
#pragma once

#include <cstdint>
#include <vector>

#include "cuda/engine.h"
#include "cuda/memory.h"
#include "model/model.h"
#include "ops/cuda/decode_step.h"
#include "ops/cuda/linear.h"

namespace m4j::cuda {

// Rows of activations start at multiples of 16 bytes, and so do the parts that kernels read on their own.
constexpr int64_t kPadding = 8;  // elements
inline int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// Matrices have zero rows and columns where a part of their output or input is padded.
struct Layer {
  const float* norm;           // [D]
  DeviceMatrix in_proj;        // Mamba-1 [2E, D]: x,z; Mamba-2 [2E + 2GN + padded(H), D]: z,x,B,C,dt
  const float* in_proj_bias;   // optional, [rows of in_proj]
  const float* conv_weight;    // [K, C]
  const float* conv_bias;      // optional, [C]
  DeviceMatrix x_proj;         // Mamba-1 [padded(R) + 2N, E]: dt,B,C
  DeviceMatrix dt_proj;        // Mamba-1 [E, padded(R)]
  const float* dt_bias;        // Mamba-1 [E], Mamba-2 [H]
  const float* A;              // Mamba-1 [N, E], Mamba-2 [H]
  const float* D;              // Mamba-1 [E], Mamba-2 [H]
  const float* mixer_norm;     // Mamba-2 [E]
  DeviceMatrix out_proj;       // [D, E]
  const float* out_proj_bias;  // optional, [D]
};

class Model {
 public:
  Model(Engine& engine, const m4j::Model& host);

  Engine& engine;
  const Config config;
  const DType dtype;  // of the activations: that of the weights, bf16 for quantised ones
  DeviceMatrix embedding;
  const float* norm_f = nullptr;
  DeviceMatrix lm_head;
  std::vector<Layer> layers;

  int64_t proj_ld() const {
    return config.is_mamba2() ? 2 * config.d_inner + 2 * config.n_groups * config.d_state + padded(config.n_heads)
                              : 2 * config.d_inner;
  }
  int64_t dbc_ld() const { return padded(config.dt_rank) + 2 * config.d_state; }
  // For a step of `tokens` sequences with ids and segments still to be set; false if the kernel does not take this model.
  bool decode_step_args(int64_t tokens, DecodeStepArgs* args) const;

 private:
  // What the decode kernel needs of a model that it takes.
  void prepare_decode();

  DeviceBuffer memory_;
  DeviceBuffer decode_layers_;                   // DecodeLayer [n_layer]; empty for quantised weights
  DeviceBuffer decode_x_proj_;                   // Mamba-1: transposes, [n_layer, E, dbc_ld]
  std::vector<DeviceBuffer> decode_workspaces_;  // of one token, of two, ...
  int64_t decode_tokens_ = 0;                    // what the decode kernel takes of this model at a time
};

}  // namespace m4j::cuda
