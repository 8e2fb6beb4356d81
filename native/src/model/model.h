// An immutable language model: dimensions, weights and the engine that computes with them.
#pragma once

#include <cstdint>
#include <memory>

#include "mamba4j.h"
#include "ops/ops.h"
#include "runtime/engine.h"
#include "runtime/memory.h"

namespace m4j {

// The dimensions with what follows from them. E d_inner, N d_state, R dt_rank, H heads, G groups, K d_conv.
struct Config : m4j_model_config {
  bool is_mamba2() const { return family == M4J_MAMBA2; }
  // Channels of the convolution.
  int64_t conv_channels() const { return is_mamba2() ? d_inner + 2 * n_groups * d_state : d_inner; }
  int64_t in_proj_rows() const { return is_mamba2() ? 2 * d_inner + 2 * n_groups * d_state + n_heads : 2 * d_inner; }
  int64_t x_proj_rows() const { return dt_rank + 2 * d_state; }
  // Floats of state a layer and a sequence.
  int64_t layer_conv_state() const { return (d_conv - 1) * conv_channels(); }
  int64_t layer_ssm_state() const { return d_inner * d_state; }
  int64_t conv_state() const { return n_layer * layer_conv_state(); }
  int64_t ssm_state() const { return n_layer * layer_ssm_state(); }
  // A sequence's, as a pool keeps it: conv windows are float32.
  DType ssm_type() const { return static_cast<DType>(state_type); }
  // What activations may be rounded to where they meet weights of the same type.
  DType rounded_type() const { return static_cast<DType>(activation_type); }
  int64_t state_bytes() const { return conv_state() * 4 + dtype_bytes(ssm_type(), ssm_state()); }
};

// A row-major matrix in caller-owned memory.
struct Matrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t rows = 0, columns = 0;

  Matrix slice(int64_t first, int64_t count) const {
    return {static_cast<const char*>(data) + dtype_bytes(dtype, first * columns), dtype, count, columns};
  }
};

// Matrices are borrowed in their dtype, the rest is copied as float32. Absent tensors are null.
struct Layer {
  FloatBuffer norm;           // [D]
  Matrix in_proj;             // Mamba-1 [2E, D]: x,z; Mamba-2 [2E + 2GN + H, D]: z,x,B,C,dt
  FloatBuffer in_proj_bias;   // optional, [rows of in_proj]
  FloatBuffer conv_weight;    // [K, C]
  FloatBuffer conv_bias;      // optional, [C]
  Matrix x_proj;              // Mamba-1 [R + 2N, E]: dt,B,C
  Matrix dt_proj;             // Mamba-1 [E, R]
  FloatBuffer dt_bias;        // Mamba-1 [E], Mamba-2 [H]
  FloatBuffer A;              // Mamba-1 [N, E], Mamba-2 [H]
  FloatBuffer D;              // Mamba-1 [E], Mamba-2 [H]
  FloatBuffer mixer_norm;     // Mamba-2 [E]
  Matrix out_proj;            // [D, E]
  FloatBuffer out_proj_bias;  // optional, [D]
};

class Model {
 public:
  // Arguments are valid: src/api/model.cc has checked every tensor.
  Model(std::shared_ptr<Engine> engine, const m4j_model_config& config, const m4j_model_weights& weights);
  ~Model();
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const std::shared_ptr<Engine> engine;
  const Config config;
  const uint64_t fingerprint;
  const Matrix embedding;   // [V, D]
  const FloatBuffer norm_f;  // [D]
  const Matrix lm_head;     // [V, D]
  Vector<Layer> layers;
  cuda::Model* gpu = nullptr;  // its copy on the engine's GPU, if the engine has one
  int64_t linear_scratch = 0;  // floats that a member needs for any of the matrices

 private:
  void allow_for(const Matrix& m);
};

}  // namespace m4j
