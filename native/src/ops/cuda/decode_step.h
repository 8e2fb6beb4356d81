// One token for each of a few sequences through a whole model in one kernel: embedding, all layers, final norm, head.
//
// Run one by one, the some hundred kernels of a step wait for each other longer than they compute. Here one block a
// multiprocessor stays resident and walks through the products of all layers. Blocks hand vectors to each other number
// by number (exchange.cuh) and never all meet. The warps of a block have roles: eight multiply, two make of the sums
// what others wait for, one keeps fetching the weights that come next (weight_ring.cuh), and in Mamba-1 one adds up
// parts of x_proj.
#pragma once

#include "ops/cuda/cuda_ops.h"

namespace m4j::cuda {

constexpr int kMaxDecodeTokens = 4;

// Weights as in cuda/model.h, matrices contiguous in the model's dtype.
struct DecodeLayer {
  const float* norm;
  const void* in_proj;
  const float* in_proj_bias;
  const float* conv_weight;
  const float* conv_bias;
  const void* x_proj;  // Mamba-1: transposed, [E, dt_rank_padded + 2N]
  const void* dt_proj;
  const float* dt_bias;
  const float* A;
  const float* D;
  const float* mixer_norm;
  const void* out_proj;
  const float* out_proj_bias;
};

struct DecodeStepArgs {
  DType dtype;  // of all matrices
  bool mamba2, falcon;
  DecodeLayer layer;     // the first
  int64_t layer_bytes;   // from the weights of a layer to those of the next
  int64_t x_proj_bytes;  // the same, of x_proj
  int n_layer, vocab_size, d_model, d_inner, d_state, d_conv;
  int dt_rank;                     // Mamba-1; dt_proj has dt_rank_padded columns
  int dt_rank_padded;
  int n_heads, headdim, n_groups;  // Mamba-2
  int in_proj_rows;
  float norm_eps, mixer_norm_eps, dt_min, dt_max;
  const void* embedding;  // [V, D]
  const float* norm_f;
  const void* lm_head;  // [V, D]

  int tokens;  // 1 ... kMaxDecodeTokens
  int32_t ids[kMaxDecodeTokens];
  int64_t slots[kMaxDecodeTokens];
  unsigned first_tag;  // n_layer more than in the step before with this workspace
  float* states;            // of slot 0: conv windows of all layers, then SSM states of all layers in state_type
  DType state_type;         // F32, BF16
  int64_t slot_stride, conv_state, layer_conv_state;  // floats
  int64_t layer_ssm_state;                            // elements
  float* logits;            // [T, V], or null: states only
  unsigned* done;           // in page-locked memory, or null: not zero once all blocks are done
  // decode_step_workspace bytes: zeros before the first step of so many tokens, then left alone
  void* workspace;
};

// Whether the kernel takes a model of these sizes on the current device.
bool decode_step_fits(const DecodeStepArgs&);
int64_t decode_step_workspace(const DecodeStepArgs&);
void decode_step(const DecodeStepArgs&, cudaStream_t stream);
// Gives a captured step, node `step` of the graph that `exec` was made from, other ids, slots and tags. A launch of a
// graph takes 3 us less than one of the kernel.
void decode_step_update(cudaGraphExec_t exec, cudaGraphNode_t step, const DecodeStepArgs&);

}  // namespace m4j::cuda
