// Every operation of the forward pass: an args struct with shapes, and a table of functions for each backend.
//
// Ops run inside a team of threads (runtime/team.h): every member calls the same op with the same args and its own
// Share, and computes its part of the outputs. How work is divided never changes the order of additions inside one
// output, so results do not depend on the number of threads. No op contains a barrier; the caller places them.
//
// Activations are float32 and token-major: rows are the tokens of a ragged batch, one after the other. `ld*` are row
// strides in elements. Pointers need only the alignment of their element. T tokens, E d_inner, N d_state, H heads,
// P headdim, G groups, K d_conv.
#pragma once

#include <cstdint>

namespace m4j {

struct SampleItem;
struct SampleResult;

enum class DType : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kQ8_0 = 3, kQ4_0 = 4 };

// Quantised rows are a sequence of blocks of 32 weights as in GGUF: a float16 scale d, then
//   Q8_0: 32 int8 q, weight = d * q
//   Q4_0: 16 bytes, byte i holds weight i in its low and weight i + 16 in its high four bits, weight = d * (q - 8)
constexpr int64_t kQuantBlock = 32;

inline bool is_quantised(DType t) { return t == DType::kQ8_0 || t == DType::kQ4_0; }

// Bytes of n weights that lie one after the other; n is a multiple of kQuantBlock for the quantised types.
inline int64_t dtype_bytes(DType t, int64_t n) {
  switch (t) {
    case DType::kF32: return 4 * n;
    case DType::kF16:
    case DType::kBF16: return 2 * n;
    case DType::kQ8_0: return n / kQuantBlock * 34;
    case DType::kQ4_0: return n / kQuantBlock * 18;
  }
  return 0;
}

// Member `index` of a team of `count` threads, with scratch memory of its own (64-byte aligned).
struct Share {
  int index;
  int count;
  float* scratch;
  int64_t scratch_floats;

  // The part [begin, end) of n items that this member works on; parts are multiples of `grain` but for the last.
  void range(int64_t n, int64_t grain, int64_t* begin, int64_t* end) const {
    const int64_t blocks = (n + grain - 1) / grain;
    const int64_t b = blocks * index / count * grain, e = blocks * (index + 1) / count * grain;
    *begin = b < n ? b : n;
    *end = e < n ? e : n;
  }
};

// out[t] = table[ids[t]]
struct EmbeddingArgs {
  const void* table;  // [V, D]
  DType table_dtype;
  const int32_t* ids;  // [T]
  int64_t tokens, d_model;
  int64_t ld_table;
  float* out;  // [T, D]
  int64_t ld_out;
};

// out = rms_norm(x * silu(gate)) * weight, over n_groups equal parts of each row; optionally x += residual first.
struct RmsNormArgs {
  float* x;  // [T, D]; written only if residual
  int64_t ld_x;
  const float* residual;  // optional [T, D]: x += residual before the norm, and stays in x
  int64_t ld_residual;
  const float* gate;  // optional [T, D]
  int64_t ld_gate;
  const float* weight;  // optional [D]
  float eps;
  int64_t tokens, dim, n_groups;
  float* out;  // [T, D]; may be x if there is no residual
  int64_t ld_out;
};

// out = x weight^T + bias. Each output is one dot product whose order of additions depends on `in` only, so a row
// gets the same bits alone and in any batch.
struct LinearArgs {
  const float* x;  // [T, in]
  int64_t ld_x;
  const void* weight;  // [out, in]
  DType weight_dtype;
  int64_t ld_weight;
  const float* bias;  // optional [out]
  int64_t tokens, in, out_dim;
  float* out;  // [T, out]
  int64_t ld_out;
  DType activation_type = DType::kF32;  // kBF16: where weights are bfloat16, x may be rounded to it
};

// Depthwise causal convolution of one sequence, from x to out, window shifted in place.
//   y_t = bias + sum_k weight[k] * x_{t-(K-1)+k}, then SiLU
// Channels are independent: each member takes a range of them.
struct Conv1dArgs {
  const float* x;  // [T, C]
  int64_t ld_x;
  const float* weight;  // [K, C]: taps first, so that channels are contiguous
  const float* bias;    // optional [C]
  float* window;        // [K-1, C]: past inputs, oldest first; read, then replaced
  int64_t tokens, channels, d_conv;
  bool silu;
  float* out;  // [T, C], not x
  int64_t ld_out;
};

// Selective scan of one sequence (Mamba paper, algorithm 2), state updated in place.
//   delta = softplus(delta + delta_bias); h = exp(delta A) h + delta B u; y = C.h + D u; out = y * silu(z)
// Channels are independent: each member takes a range of them; time is walked in order.
struct SelectiveScanArgs {
  const float* u;  // [T, E]
  int64_t ld_u;
  const float* delta;  // [T, E]
  int64_t ld_delta;
  const float* A;  // [N, E]: states first, so that channels are contiguous
  const float* B;  // [T, G, N]
  const float* C;  // [T, G, N]
  int64_t ld_bc;   // row stride of B and C
  const float* D;  // optional [E]
  const float* z;  // optional [T, E]
  int64_t ld_z;
  const float* delta_bias;  // optional [E]
  bool delta_softplus;
  int64_t tokens, d_inner, d_state, n_groups;
  float* state;  // [N, E]: states first; read, then replaced
  float* out;    // [T, E]; may be u or z
  int64_t ld_out;
};

// State space dual form of one sequence (Mamba-2 paper, section 6), state updated in place.
//   dt = clamp(softplus(dt + dt_bias)); h = exp(dt A) h + dt x B^T; y = h C + D x
// Heads are independent: each member takes a range of them.
struct SsdArgs {
  const float* x;  // [T, H, P]
  int64_t ld_x;
  const float* dt;  // [T, H]
  int64_t ld_dt;
  const float* A;  // [H]
  const float* B;  // [T, G, N]
  const float* C;  // [T, G, N]
  int64_t ld_bc;
  const float* D;        // optional [H]
  const float* dt_bias;  // optional [H]
  bool dt_softplus;
  float dt_min, dt_max;
  int64_t tokens, heads, headdim, d_state, n_groups, chunk_size;
  float* state;  // [H, P, N]
  float* out;    // [T, H, P], not x
  int64_t ld_out;
};

// Over each row of x.
struct SoftmaxArgs {
  const float* x;  // [T, n]
  int64_t ld_x;
  int64_t tokens, n;
  float* out;  // [T, n]; may be x
  int64_t ld_out;
};

// Chooses tokens from rows of logits: ops/sampling.h says how. Every backend gives the same tokens. Members take items.
struct SampleArgs {
  const float* logits;  // [rows, V]
  int64_t ld_logits;
  const SampleItem* items;  // [count]
  int64_t count;
  SampleResult* results;  // [count]; left alone where an item has no candidates
};

// One backend on the CPU: the scalar reference, or the SIMD code for one instruction set.
struct Ops {
  const char* name;  // as in m4j_simd_targets()
  void (*embedding)(const EmbeddingArgs&, const Share&);
  void (*rms_norm)(const RmsNormArgs&, const Share&);
  void (*linear)(const LinearArgs&, const Share&);
  void (*conv1d)(const Conv1dArgs&, const Share&);
  void (*selective_scan)(const SelectiveScanArgs&, const Share&);
  void (*ssd_step)(const SsdArgs&, const Share&);   // token by token: decode
  void (*ssd_chunk)(const SsdArgs&, const Share&);  // chunked matrix form: prefill
  void (*softmax)(const SoftmaxArgs&, const Share&);
  void (*log_softmax)(const SoftmaxArgs&, const Share&);
  void (*sample)(const SampleArgs&, const Share&);
  // Scratch a member needs, in floats.
  int64_t (*ssd_chunk_scratch)(int64_t headdim, int64_t d_state, int64_t chunk_size);
  int64_t (*linear_scratch)(int64_t in, DType weight_dtype);
  int64_t (*sample_scratch)(int64_t vocab_size);
};

const Ops& reference_ops();

// Backends that this build holds and this processor runs, best first; the last one is the reference.
struct OpsList {
  const Ops* const* items;
  int count;
};
OpsList available_ops();

// nullptr if `name` is not among them; the best for nullptr.
const Ops* find_ops(const char* name);

}  // namespace m4j
