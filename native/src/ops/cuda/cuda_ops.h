// Every operation of the forward pass on the GPU: an args struct with shapes, and a launcher.
//
// A launcher puts its work on `stream` and returns; it neither allocates nor synchronises, so that a step can be
// captured as a CUDA graph. What a graph must be able to change between replays (ids, segments, slots) lies in device
// memory; what shapes a launch (counts, the longest segment) is in the args. Errors of a launch are thrown as Failure.
//
// Activations are token-major in one 16- or 32-bit type: rows are the tokens of a ragged batch, one after the other.
// Sums, the residual stream and all small weights are float32, and so is arithmetic on states, which a pool may keep in
// bfloat16 (state_type.cuh). `ld*` are row strides in elements; all pointers are device pointers; rows of activations
// start at multiples of 16 bytes. T tokens, E d_inner, N d_state, H heads, P headdim, G groups, K d_conv, S slots.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "ops/ops.h"

namespace m4j::cuda {

// Consecutive tokens of one sequence inside a batch and the slot whose state they continue.
struct Segment {
  int64_t row;     // of its first token
  int64_t tokens;  // >= 1
  int64_t slot;
};

// The ragged batch as a launch sees it.
struct Segments {
  const Segment* items;  // [count], in device memory, in the order of their rows
  int64_t count;
  int64_t tokens;   // of all segments together
  int64_t longest;  // an upper bound of the tokens of one segment
};

// Memory for what blocks hand to each other inside one op; contents need not survive the op. The sizes come from the
// *_workspace functions.
struct Workspace {
  void* data;  // 256-byte aligned
  int64_t bytes;
};

// out[t] = table[ids[t]]
struct EmbeddingArgs {
  const void* table;  // [V, D] in table_dtype, quantised as a checkpoint stores it
  DType table_dtype;
  int64_t ld_table;    // quantised: D
  const int32_t* ids;  // [T]
  int64_t tokens, d_model;
  float* out;  // [T, D]
  int64_t ld_out;
};
void embedding(const EmbeddingArgs&, cudaStream_t stream);

// out = rms_norm(residual += x) * weight before a mixer, rms_norm(x * silu(gate)) * weight after the SSD, and
// rms_norm(x) without weight inside Falcon-Mamba; over n_groups equal parts of each row.
struct RmsNormArgs {
  DType dtype;    // of x, gate and out
  const void* x;  // optional with residual [T, D]
  int64_t ld_x;
  float* residual;  // optional [T, D], contiguous: becomes residual + x
  const void* gate;  // optional [T, D]
  int64_t ld_gate;
  const float* weight;  // optional [D]
  float eps;
  int64_t tokens, dim, n_groups;
  void* out;  // [T, D]; may be x if there is no residual
  int64_t ld_out;
  const float* x_scale = nullptr;  // optional with residual [T]: what rows of x are multiplied by
};
void rms_norm(const RmsNormArgs&, cudaStream_t stream);

// The scale of a norm whose squares have been added up in parts: out[t] = 1 / sqrt(sum(squares[t]) / dim + eps)
struct RmsScaleArgs {
  const float* squares;  // [T, parts]
  int64_t tokens, parts;
  int64_t dim;  // numbers squared
  float eps;
  float* out;  // [T]
};
void rms_scale(const RmsScaleArgs&, cudaStream_t stream);

// Depthwise causal convolution, windows shifted in place.
//   y_t = bias + sum_k weight[k] * x_{t-(K-1)+k}, then SiLU
struct Conv1dArgs {
  DType dtype;    // of x and out
  const void* x;  // [T, C]
  int64_t ld_x;
  const float* weight;  // [K, C]
  const float* bias;    // optional [C]
  float* windows;       // [S, K-1, C] with slot_stride: past inputs, oldest first; read, then replaced
  int64_t slot_stride;  // floats
  Segments segments;
  int64_t channels, d_conv;  // d_conv 2 ... 8
  bool silu;
  void* out;  // [T, C], not x
  int64_t ld_out;
};
void conv1d(const Conv1dArgs&, cudaStream_t stream);

// Of selective_scan and ssd_chunk; ssd_step takes any.
constexpr int64_t kMaxDState = 256;

// Selective scan (Mamba paper, algorithm 2), states updated in place.
//   delta = softplus(delta + delta_bias); h = exp(delta A) h + delta B u; y = C.h + D u; out = y * silu(z)
struct SelectiveScanArgs {
  DType dtype;    // of u, delta, B, C, z and out
  const void* u;  // [T, E]
  int64_t ld_u;
  const void* delta;  // [T, E]
  int64_t ld_delta;
  const float* A;  // [N, E]
  const void* B;   // [T, G, N]
  const void* C;   // [T, G, N]
  int64_t ld_bc;
  const float* D;  // optional [E]
  const void* z;   // optional [T, E]
  int64_t ld_z;
  const float* delta_bias;  // optional [E]
  bool delta_softplus;
  Segments segments;
  int64_t d_inner, d_state, n_groups;  // d_state 1 ... kMaxDState
  void* states;                        // [S, N, E] in state_type with slot_stride; read, then replaced
  int64_t slot_stride;                 // elements
  void* out;                           // [T, E]; may be u or z
  int64_t ld_out;
  Workspace workspace;  // selective_scan_workspace; with less, a long sequence takes longer
  DType state_type = DType::kF32;  // or BF16
};
void selective_scan(const SelectiveScanArgs&, cudaStream_t stream);
int64_t selective_scan_workspace(int64_t d_inner, int64_t d_state, int64_t n_groups, const Segments& segments);

// State space dual form (Mamba-2 paper, section 6), states updated in place.
//   dt = clamp(softplus(dt + dt_bias)); h = exp(dt A) h + dt x B^T; y = h C + D x
struct SsdArgs {
  DType dtype;    // of x, dt, B, C and out
  const void* x;  // [T, H, P]
  int64_t ld_x;
  const void* dt;  // [T, H]
  int64_t ld_dt;
  const float* A;  // [H]
  const void* B;   // [T, G, N]
  const void* C;   // [T, G, N]
  int64_t ld_bc;
  const float* D;        // optional [H]
  const float* dt_bias;  // optional [H]
  bool dt_softplus;
  float dt_min, dt_max;
  Segments segments;
  int64_t heads, headdim, d_state, n_groups;
  void* states;         // [S, H, P, N] in state_type with slot_stride; read, then replaced
  int64_t slot_stride;  // elements
  void* out;            // [T, H, P], not x
  int64_t ld_out;
  Workspace workspace;  // for ssd_chunk: ssd_chunk_workspace; with less, a long sequence takes longer
  DType state_type = DType::kF32;  // or BF16
  // The gated norm but for its scale, which may as well be applied behind a product: out = y * silu(z) * norm_weight.
  // Only where ssd_chunk_gates says so.
  const void* z = nullptr;  // optional [T, H, P]
  int64_t ld_z = 0;
  const float* norm_weight = nullptr;  // with z [H, P]
  float* squares = nullptr;            // with z [T, ssd_chunk_squares]: sums of (y silu(z))^2
};
void ssd_step(const SsdArgs&, cudaStream_t stream);   // token by token: decode
void ssd_chunk(const SsdArgs&, cudaStream_t stream);  // chunked matrix form: prefill
int64_t ssd_chunk_workspace(int64_t heads, int64_t headdim, int64_t d_state, int64_t n_groups, const Segments& segments);
// Whether ssd_chunk takes z too, on this card and for these types, sizes and places.
bool ssd_chunk_gates(const SsdArgs&);
int64_t ssd_chunk_squares(int64_t heads, int64_t headdim);

// The last row of each segment, of the residual stream with what is still to be added to it.
struct GatherLastArgs {
  DType dtype;            // of x
  const float* residual;  // [T, D]
  const void* x;          // [T, D]
  const float* x_scale;   // optional [T], as in RmsNormArgs
  Segments segments;
  int64_t dim;
  float* out;  // [segments, D]
};
void gather_last(const GatherLastArgs&, cudaStream_t stream);

// Over each row of x.
struct SoftmaxArgs {
  DType dtype;    // of x; out is float32
  const void* x;  // [T, n]
  int64_t ld_x;
  int64_t tokens, n;
  float* out;  // [T, n]
  int64_t ld_out;
  bool log;
};
void softmax(const SoftmaxArgs&, cudaStream_t stream);

// Chooses tokens from rows of logits: ops/sampling.h says how, and the CPU chooses the same ones.
struct SampleArgs {
  const float* logits;  // [rows, V]
  int64_t ld_logits;
  int64_t vocab_size;       // at most kMaxGpuSampleVocab
  const SampleItem* items;  // [count]; they, their recent ids and the results may lie in page-locked host memory
  int64_t count;
  SampleResult* results;  // [count]; left alone where an item has no candidates
};
constexpr int64_t kMaxGpuSampleVocab = 1 << 19;
void sample(const SampleArgs&, cudaStream_t stream);

}  // namespace m4j::cuda
