// The forward pass of one block of tokens, written once over the ops: embedding, layers, final norm, head.
#pragma once

#include <cstdint>

#include "model/model.h"
#include "runtime/engine.h"

namespace m4j {

// Consecutive tokens of one sequence inside a block, with the state they continue.
struct Segment {
  int64_t row;     // of its first token in the block
  int64_t tokens;
  float* conv;     // [n_layer, K-1, C]
  float* ssm;      // [n_layer, N, E] in Mamba-1, [n_layer, H, P, N] in Mamba-2

  int64_t last() const { return row + tokens - 1; }
};

struct Block {
  const int32_t* ids;  // [T]
  int64_t tokens;      // T
  const Segment* segments;
  int64_t n_segments;
  int32_t logits_mode;    // M4J_LOGITS_NONE, _LAST or _ALL
  float* logits;          // ALL: [T, V]; LAST: [n_last, V]
  int64_t n_last;         // the first n_last segments end their sequences in this block
};

// Row-major float32, carved out of the engine's workspace.
struct Activations {
  float* x;      // [T, D] residual stream
  float* h;      // [T, D] normed input of a mixer, or of the head
  float* mix;    // [T, D] output of a mixer, not yet added to x; until then free
  float* proj;   // [T, rows of in_proj]
  float* conv;   // [T, C]
  float* dbc;    // Mamba-1: [T, R + 2N]
  float* delta;  // Mamba-1: [T, E]
  float* y;      // Mamba-2: [T, E]
};

// Runs on every member of the team; `turn` is the barrier they share.
struct Pass {
  const Model& model;
  const Ops& ops;
  Engine::Turn& turn;
  const Activations& act;
  const Block& block;
  int64_t chunk_size;  // of the SSD, at most the tokens a block may have

  // Tokens of the block that get logits.
  int64_t logits_rows() const {
    switch (block.logits_mode) {
      case M4J_LOGITS_ALL: return block.tokens;
      case M4J_LOGITS_LAST: return block.n_last;
      default: return 0;
    }
  }
  // Tokens whose output of a layer's mixer anything depends on; the others only move the state. Unless it is all of
  // them, row i of the output belongs to the last token of segment i.
  int64_t outputs(int64_t layer) const { return layer + 1 < model.config.n_layer ? block.tokens : logits_rows(); }
};

// Floats of shared workspace for blocks of up to `tokens` tokens.
int64_t activation_floats(const Config& config, int64_t tokens);
Activations carve_activations(const Config& config, int64_t tokens, float* workspace);

// Floats of scratch a member needs; chunk_size is 0 if no segment takes the chunked path.
int64_t forward_scratch_floats(const Model& model, const Ops& ops, int64_t chunk_size);

// Sequence pieces of up to this many tokens go token by token: below it the matrix form does more work than it saves.
constexpr int64_t kSsdStepTokens = 4;

void forward(const Pass& pass, const Share& share);

// out [tokens, weight rows] = x weight^T + bias; the bias is optional.
void project(const Pass& pass, int64_t tokens, const float* x, int64_t ld_x, const Matrix& weight, const float* bias,
             float* out, int64_t ld_out, const Share& share);

// out[i] = x at the last token of segment i, for the first `count` segments; rows of x and out are `columns` long.
void gather_last(const Pass& pass, int64_t count, const float* x, int64_t columns, float* out, const Share& share);

// One mixer each: act.h -> act.mix, states of the segments moved on.
void mamba1_mixer(const Pass& pass, int64_t layer, const Share& share);
void mamba2_mixer(const Pass& pass, int64_t layer, const Share& share);

}  // namespace m4j
