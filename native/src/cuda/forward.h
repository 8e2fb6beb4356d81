// The forward pass of one block of tokens on the GPU: launches on the engine's stream, nothing else, so that it can run
// at once or be captured as a graph.
#pragma once

#include <cstdint>

#include "cuda/states.h"
#include "ops/cuda/cuda_ops.h"

namespace m4j::cuda {

// As on the CPU: up to this many tokens a sequence the matrix form of the SSD does more work than it saves.
constexpr int64_t kSsdStepTokens = 4;
// Whether sequences of up to so many tokens take ssd_step, not ssd_chunk.
inline bool ssd_in_steps(int64_t longest, int64_t d_state) { return longest <= kSsdStepTokens || d_state > kMaxDState; }

// What a pass reads and writes; all in GPU memory.
struct Batch {
  const int32_t* ids;  // [T]
  Segments segments;
  int32_t logits_mode;
  int64_t n_last;  // the first n_last segments end their sequences in this block
};

// Activations of up to `tokens` tokens, carved out of the engine's workspace. The dtype is the model's.
struct Activations {
  float* x;    // [T, D] residual stream, float32
  void* h;     // [T, D] normed input of a mixer, or of the head
  void* mix;   // [T, D] output of a mixer, not yet added to x
  void* proj;  // [T, proj_ld]
  void* conv;  // [T, C]
  void* dbc;   // Mamba-1: [T, dbc_ld]
  void* y;     // Mamba-1: [T, E] delta, then output of the scan; Mamba-2: [T, E]
  float* squares;  // Mamba-2: [T, ssd_chunk_squares]
  float* scales;   // Mamba-2: [T], of rows of mix
  float* x_last;   // [last, D]
  float* logits;   // [logit rows, V]
  int64_t logit_rows;
  Workspace op;  // of one op at a time
};

// Bytes of workspace for blocks of up to `tokens` tokens, and its layout.
int64_t activation_bytes(const Model& model, const Segments& bound);
Activations carve_activations(const Model& model, const Segments& bound, char* workspace);

// All layers: what is left is in x and mix, whose rows are still to be scaled by what is returned, if not null.
const float* layers(States& states, const Batch& batch, const Activations& act);
// Number of rows that have logits.
int64_t logit_rows(const Batch& batch);
// Before head(): collects the rows that have logits.
void prepare_head(const Model& model, const Batch& batch, const float* mix_scale, const Activations& act);
// Rows [begin, begin + count) of them, count <= act.logit_rows, to act.logits.
void head(const Model& model, int64_t begin, int64_t count, const Activations& act);

}  // namespace m4j::cuda
