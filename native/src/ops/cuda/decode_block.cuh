// What a block of the decode step knows, and the order of its work. Weights W, states S; kTokens is 1 or the most.
#pragma once

#include <type_traits>

#include "ops/cuda/decode_layout.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {

// The warps that multiply and those that finish.
__device__ inline void block_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads + kFinishers) : "memory"); }

// Those that multiply leave sums of squares to those that finish. (racecheck loses track of all barriers of threads that
// arrive without waiting. If all wait it finds no hazard, but a step of mamba-130m takes 5 % longer.)
__device__ inline void leave_squares() { asm volatile("bar.arrive 2, %0;" ::"n"(kThreads + kFinishers) : "memory"); }
__device__ inline void wait_for_squares() { asm volatile("bar.sync 2, %0;" ::"n"(kThreads + kFinishers) : "memory"); }

// Weights of a layer. They lie as those of the first do, `offset` bytes further.
struct LayerWeights {
  const DecodeLayer& first;
  int64_t offset;

  template <typename T>
  __device__ T* operator[](T* DecodeLayer::*pointer) const {
    using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Byte*>(first.*pointer) + offset);
  }
};

template <typename W, typename S, bool kMamba2, int kTokens>
class DecodeStep {
 public:
  __device__ DecodeStep(const DecodeStepArgs& args, const Exchange& exchange, const SharedLayout& shape,
                        const Ring& weights, char* shared)
      : a(args), e(exchange), l(shape), ring(weights), base(shared), channels(args.d_inner, share_unit(kMamba2)),
        smalls(small_size(args)), outputs(args.d_model, share_unit(kMamba2)),
        per_model(1.0f / static_cast<float>(args.d_model)),
        per_group(static_cast<float>(kMamba2 ? args.n_groups : 1) / static_cast<float>(args.d_inner)),
        model_slice(slice_of_warp(args.d_model, 1)),
        inner_slice(slice_of_warp(args.d_inner, kMamba2 ? args.n_groups : 1)) {}

  // Before the first barrier: what the others find in shared memory, by those who neither fetch nor add.
  __device__ void prepare() {
    const int tid = static_cast<int>(threadIdx.x);
    constexpr int kStep = kThreads + kFinishers;
    if constexpr (kMamba2) {
#pragma unroll 1
      for (int i = tid; i < channels.count; i += kStep) {
        const int head = (channels.begin + i) / a.headdim;
        at<int2>(l.rows)[i] = {head, head / (a.n_heads / a.n_groups) * a.d_state};
      }
    }
    // What is multiplied with the columns that fill up a chunk must be a number.
#pragma unroll 1
    for (int i = tid; i < kWarps * tokens() * stride() / 4; i += kStep) at<float>(l.fragments)[i] = 0;
#pragma unroll 1
    for (int i = tid; i < tokens() * small_stride(a); i += kStep) at<float>(l.small)[i] = 0;
  }

  // The warp that fetches.
  __device__ void fetch();

  // Mamba-2, in the order in which product<kX>() and ssd() read them.
  __device__ void fetch_x_z_states(int layer);

  // Of the block's rows of a product.
  __device__ void fetch_rows(int layer, int phase, int first, int count, int more = 0);

  // The warp that adds, in Mamba-1: the sums of x_proj of which this block receives the parts.
  __device__ void add();

  // The warps that multiply. Products of all kinds share their code, so that more of it stays in the caches.
  __device__ void run() {
#pragma unroll 1
    for (int layer = 0; layer < a.n_layer + static_cast<int>(a.logits != nullptr); ++layer) {
      const LayerWeights w = weights(layer);
      const bool last = layer == a.n_layer, read = is_read(layer);
#pragma unroll 1
      for (int phase = last ? kHead : 0; phase <= (last ? kHead : kOut); ++phase) {
        if (!read && (phase == kZ || phase == kOut)) continue;
        if (kMamba2 && phase == kZ) continue;  // multiplied with x
        if (!kMamba2 && phase == kSmall) {
          // Parts of B, C, dt, their sums, and those on their way to all blocks while z is multiplied.
          multiply_small(layer);
          if (kTokens == 1) load_early(w, layer);
        } else if (phase != kDt) {
          product(phase, w, layer, read);
        } else if (channels.count > 0) {
          if constexpr (kMamba2) {
            ssd(w, layer, read);
          } else {
            if (kTokens > 1) load_early(w, layer);  // there are no registers for it before
            scan(w, layer, read);
          }
        }
      }
    }
  }

  // By those who multiply, after run().
  __device__ void report() const {
    if (a.done == nullptr) return;
    block_barrier();
    if (threadIdx.x == 0 && atomicInc(e.done, gridDim.x - 1) == gridDim.x - 1) {
      asm volatile("st.relaxed.sys.global.u32 [%0], 1;" ::"l"(a.done) : "memory");
    }
  }

  // The warps that make of sums what others wait for: what that needs besides they load in time, while the sums are
  // computed. They meet the others at all barriers.
  __device__ void finish() {
    init_residual();
#pragma unroll 1
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const LayerWeights w = weights(layer);
      const bool read = is_read(layer);
      if constexpr (kMamba2) {
        finish_product<kSmall>(w, layer, read);
        finish_product<kX>(w, layer, read);
      } else {
        finish_product<kX>(w, layer, read);
        if (read) finish_product<kZ>(w, layer, read);
      }
      if (channels.count > 0) block_barrier();  // of receive_small()
      if (read) finish_product<kOut>(w, layer, read);
    }
    if (a.logits != nullptr) finish_product<kHead>(weights(0), a.n_layer, true);
    if (a.done != nullptr) block_barrier();  // of report()
  }

 private:
  // The matrix products of a layer, and the head. A block's rows of x and z are those of its own channels.
  // kDt are the rows of dt_proj that Mamba-1's scan reads.
  static constexpr int kX = kMamba2 ? 1 : 0, kSmall = kMamba2 ? 0 : 1, kZ = 2, kDt = 3, kOut = 4, kHead = 5;
  static constexpr int kPackets = packets_of_two(kMamba2, sizeof(W) == 4);  // of two numbers handed on

  __device__ int tokens() const { return kTokens == 1 ? 1 : a.tokens; }
  __device__ int shift() const { return kTokens == 1 ? 0 : tokens_shift(a.tokens); }

  __device__ LayerWeights weights(int layer) const { return {a.layer, layer * a.layer_bytes}; }
  __device__ unsigned tag_of(int layer) const { return a.first_tag + static_cast<unsigned>(layer) + 1; }
  // Of the last layer only the states are needed where there are no logits. (A single layer hands on what it computes:
  // no packet may be so old that its tag comes again.)
  __device__ bool is_read(int layer) const { return layer + 1 < a.n_layer || a.logits != nullptr || layer == 0; }

  // Of the matrix, of this product's part of it.
  __device__ int first_row(int phase) const {
    if (kMamba2 && phase == kSmall) return 2 * a.d_inner;
    return phase == (kMamba2 ? kX : kZ) ? a.d_inner : 0;
  }

  __device__ Product describe(int phase) const {
    const int E = a.d_inner, D = a.d_model;
    const DecodeLayer& w = a.layer;
    switch (phase) {
      case kX: return {w.in_proj, a.layer_bytes, first_row(kX), channels.begin, channels.count, D, l.model};
      case kZ: return {w.in_proj, a.layer_bytes, first_row(kZ), channels.begin, channels.count, D, l.model};
      case kSmall:
        if (kMamba2) return {w.in_proj, a.layer_bytes, first_row(kSmall), smalls.begin, smalls.count, D, l.model};
        return {w.x_proj, a.x_proj_bytes, 0, channels.begin, channels.count, small_size(a), l.x_proj};
      case kDt:
        return {w.dt_proj, a.layer_bytes, 0, channels.begin, kMamba2 ? 0 : channels.count, a.dt_rank_padded, l.dt_proj};
      case kOut: return {w.out_proj, a.layer_bytes, 0, outputs.begin, outputs.count, E, l.inner};
      default: {
        const Share share(a.vocab_size);
        return {a.lm_head, 0, 0, share.begin, share.count, D, l.model};
      }
    }
  }

  // Small vectors of a layer, and what else products and scan read of this block's channels, so that both find it in
  // the second-level cache.
  __device__ void prefetch_vectors(const LayerWeights& w, int lane) const;

  __device__ void prefetch_channels(const LayerWeights& w, int layer, int lane) const;

  template <typename T>
  __device__ T* at(int offset) const { return reinterpret_cast<T*>(base + offset); }
  __device__ int conv_channels() const { return a.d_inner + (kMamba2 ? 2 * a.n_groups * a.d_state : 0); }
  __device__ float* slot(int t) const { return a.states + a.slots[kTokens == 1 ? 0 : t] * a.slot_stride; }
  __device__ float* window(int t, int layer) const { return slot(t) + layer * a.layer_conv_state; }
  static constexpr int kStateBytes = sizeof(S);
  __device__ S* ssm_state(int t, int layer) const {
    return reinterpret_cast<S*>(slot(t) + a.conv_state) + layer * a.layer_ssm_state;
  }
  __device__ char* fragments() const {
    return base + l.fragments + static_cast<int>(threadIdx.x) / kWarp * tokens() * stride();
  }
  __device__ int stride() const { return l.warp_chunks * kFragment; }  // bytes from vector to vector of a warp
  __device__ const W* embedding(int t) const {
    return static_cast<const W*>(a.embedding) + static_cast<int64_t>(a.ids[kTokens == 1 ? 0 : t]) * a.d_model;
  }

  // The residual stream of this block's rows of out_proj lies in shared memory: [row << shift() | token]. Each finisher
  // reads what it has written.
  __device__ void init_residual() {
#pragma unroll 1
    for (int i = finisher(); i < outputs.count << shift(); i += kFinishers) {
      const int t = i & ((1 << shift()) - 1);
      if (t < tokens()) at<float>(l.residual)[i] = to_float(embedding(t)[outputs.begin + (i >> shift())]);
    }
  }
  __device__ int finisher() const { return static_cast<int>(threadIdx.x) - kThreads; }

  // ---- Products -----------------------------------------------------------------------------------------------------

  // float16 ends at 65504, which a residual stream may exceed: it is scaled down before the norm.
  static constexpr float kScale = std::is_same_v<W, __half> ? 0x1p-6f : 1;

  // Whether a product reads y [E] instead of the residual stream [D], and whether what it reads is normed.
  static __device__ constexpr bool is_inner(int phase) { return phase == kOut; }
  static __device__ constexpr bool is_normed(int phase) { return !is_inner(phase) || kMamba2; }

  // Rows whose sums all meet at a time. In Mamba-2, those of x take z's along.
  static __device__ constexpr bool with_z(int phase) { return kMamba2 && phase == kX; }
  static __device__ constexpr int pass_rows(int phase) {
    return kSums / (kTokens == 1 ? 1 : kMaxDecodeTokens) / (kTokens == 1 || with_z(phase) ? 2 : 1);
  }

  __device__ Share share_of(int phase) const {
    if (phase == kHead) return Share(a.vocab_size);
    if (phase == kOut) return outputs;
    return phase == kSmall ? Share(smalls) : Share(channels);
  }
  __device__ Slice slice_of(int phase) const { return is_inner(phase) ? Slice(inner_slice) : Slice(model_slice); }

  // Whether a product's first rows come with a vector that has not been received yet: x and z read the same one, and so
  // do B, C, dt of Mamba-2.
  __device__ bool reads_anew(int phase, int first) const {
    return first == 0 && phase != kZ && !(with_z(phase) && smalls.count > 0);
  }

  // Sums of this block's rows of one product. `read`: as is_read().
  __device__ void product(int phase, const LayerWeights& w, int layer, bool read);

  // Those sums handed over, stored, or kept for the scan.
  template <int kPhase>
  __device__ void finish_product(const LayerWeights& w, int layer, bool read);

  __device__ void receive_vector(int phase, const LayerWeights& w, int layer, float (&squares)[kTokens]);

  // As receive().
  __device__ void receive_embedding(const float* norm, const Slice& slice, float (&squares)[kTokens]);

  // The sums of squares of what each warp has received, [warp, token], by each finishing warp for itself.
  __device__ void add_squares();

  // What the warps' slices add up to, each group of columns divided by its root mean square if they were normed.
  template <int kPhase>
  __device__ float total(const float* sums, int t) const;

  // What a row needs besides, loaded before its sum is there.
  struct Operands {
    float bias, past[kMaxConv - 1], weight[kMaxConv], conv_bias;
  };

  // Element k of a vector, by a whole warp; lanes that are `distance` apart have neighbours.
  __device__ void hand_on(Packet* vector, int k, float v, int distance, bool own, int layer) const;

  // The channel of the convolution that a row of the product feeds, or -1.
  template <int kPhase>
  __device__ int conv_channel(int row) const {
    if (kPhase == kX) return row;
    return kMamba2 && kPhase == kSmall && row < 2 * a.n_groups * a.d_state ? a.d_inner + row : -1;
  }

  template <int kPhase>
  __device__ Operands load_operands(const LayerWeights& w, int layer, int row, int t) const;

  // Channel c of the convolution, and its window a token later.
  __device__ float convolve(float v, const Operands& o) const;
  __device__ void shift_window(int layer, int c, int t, float v, const Operands& o) const;

  // `mine` is the row among those of this block, `row` that among all blocks'.
  template <int kPhase>
  __device__ float finish(int layer, int mine, int row, int t, float sum, const Operands& o);

  // Mamba-1: the parts of dt, B and C that come from this block's channels, to the blocks that add them up. Four lanes
  // share four sums, each with a channel of four that follow each other.
  __device__ void multiply_small(int layer);

  // ---- Scan ---------------------------------------------------------------------------------------------------------

  // dt, B and C, or B, C and dt, of all tokens, to shared memory: [token, small_stride].
  __device__ void receive_small(int layer);

  // What the scan of a channel needs, loaded before the others' part is there. A lane has the states
  // lane % kScanLanes + i kScanLanes, as far as there are any.
  struct Channel {
    float A[kScanStates], D, dt_bias;
  };

  __device__ Channel load_channel(const LayerWeights& w, int channel) const;

  __device__ void load_states(S (&h)[kScanStates], int t, int layer, int channel) const;
  __device__ int scan_state(int i) const { return static_cast<int>(threadIdx.x) % kScanLanes + i * kScanLanes; }

  // What scan() begins with.
  __device__ void load_early(const LayerWeights& w, int layer);

  // dt_proj and the selective scan of this block's channels.
  __device__ void scan(const LayerWeights& w, int layer, bool read);

  // What the state update needs of a row's head; B is the place of its group's.
  struct Head {
    int head, B;
    float A, D, dt_bias;
  };
  __device__ Head load_head(const LayerWeights& w, int row) const {
    const int2 place = at<int2>(l.rows)[row];
    return {place.x, place.y, w[&DecodeLayer::A][place.x], w[&DecodeLayer::D][place.x],
            w[&DecodeLayer::dt_bias][place.x]};
  }

  // State update of Mamba-2 and the gate: this block's rows [N] of the state [H, P, N].
  __device__ void ssd(const LayerWeights& w, int layer, bool read);

  const DecodeStepArgs& a;
  const Exchange& e;
  const SharedLayout& l;
  const Ring& ring;
  char* const base;  // of shared memory
  const Share channels, smalls, outputs;
  const float per_model, per_group;  // 1 / columns of what is normed together
  const Slice model_slice, inner_slice;
  RingPosition ring_at;
  unsigned ring_free = static_cast<unsigned>(ring.stages);  // of the warp that fetches
  Channel early_channel;  // of Mamba-1's scan
  S early_states[kScanStates];
  int sums_buffer = 0;  // who multiplies may be a product ahead of those who still add up
};

}  // namespace m4j::cuda
