// A model's weights in GPU memory.
#pragma once

#include <cstdint>
#include <utility>
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
  DeviceMatrix neediest;  // the one whose products need the most workspace: layers may be stored in different types

  int64_t proj_ld() const {
    return config.is_mamba2() ? 2 * config.d_inner + 2 * config.n_groups * config.d_state + padded(config.n_heads)
                              : 2 * config.d_inner;
  }
  int64_t dbc_ld() const { return padded(config.dt_rank) + 2 * config.d_state; }
  // For a step of `tokens` sequences with ids, slots and tags still to be set; false if the kernel does not take this
  // model.
  bool decode_step_args(int64_t tokens, DecodeStepArgs* args) const;
  // The first tag of a step of `tokens` sequences that has not begun.
  unsigned take_decode_tags(int64_t tokens) {
    unsigned& next = decode_tags_[tokens - 1];
    return std::exchange(next, next + static_cast<unsigned>(config.n_layer));
  }

 private:
  // What the decode kernel needs of a model that it takes.
  void prepare_decode();

  DeviceBuffer memory_;
  DecodeLayer decode_layer_{};                   // the first; the others lie the same way behind it
  int64_t decode_layer_bytes_ = 0, decode_x_proj_bytes_ = 0;  // from layer to layer
  unsigned decode_tags_[kMaxDecodeTokens] = {};  // of the workspaces
  DeviceBuffer decode_x_proj_;                   // Mamba-1: transposes, [n_layer, E, dbc_ld]
  std::vector<DeviceBuffer> decode_workspaces_;  // of one token, of two, ...
  int64_t decode_tokens_ = 0;                    // what the decode kernel takes of this model at a time
};

}  // namespace m4j::cuda
