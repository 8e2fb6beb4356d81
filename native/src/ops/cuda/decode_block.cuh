// What a block of the decode step knows, and the order of its work. Weights W, states S; kTokens is 1 or the most.
#pragma once

#include <cstddef>
#include <type_traits>

#include "ops/cuda/decode_layout.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {

// The warps that compute.
__device__ inline void block_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

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
        inner_slice(slice_of_warp(args.d_inner, kMamba2 ? args.n_groups : 1)) {
    const int tid = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
    // From the host's memory, the longest way.
    int64_t slot = 0, id = 0;
    if (tid < tokens()) {
      slot = a.segments[tid].slot;
      id = a.ids[tid];
    }
    const bool second = *static_cast<const volatile unsigned*>(e.begun) >= gridDim.x;
    set = second ? e.set : 0;
    // Pointers of all layers: fetched one by one they would cost each phase a trip to memory.
    auto* to = reinterpret_cast<uint64_t*>(base);
    const auto* from = reinterpret_cast<const uint64_t*>(a.layers);
#pragma unroll 1
    for (int i = tid; i < a.n_layer * kLayerWords; i += threads) to[i] = from[i];
    layers = reinterpret_cast<const DecodeLayer*>(to);
    if (tid < kProducts) at<Product>(l.products)[tid] = describe(tid);
    if constexpr (kMamba2) {
#pragma unroll 1
      for (int i = tid; i < channels.count; i += threads) {
        const int head = (channels.begin + i) / a.headdim;
        at<int2>(l.rows)[i] = {head, head / (a.n_heads / a.n_groups) * a.d_state};
      }
    }
    if (tid < tokens()) {
      at<float*>(l.slots)[tid] = a.states + slot * a.slot_stride;
      at<const W*>(l.embeddings)[tid] = static_cast<const W*>(a.embedding) + id * a.d_model;
    }
#pragma unroll 1
    for (int i = static_cast<int>(blockIdx.x) * threads + tid; i < e.set; i += static_cast<int>(gridDim.x) * threads) {
      e.x[i + (second ? 0 : e.set)] = 0;
    }
    // What is multiplied with the columns that fill up a chunk must be a number.
#pragma unroll 1
    for (int i = tid; i < kWarps * tokens() * stride() / 4; i += threads) at<float>(l.fragments)[i] = 0;
    __syncthreads();
    if (tid == 0) atomicInc(e.begun, 2 * gridDim.x - 1);
  }

  // The warp that fetches.
  __device__ void fetch();

  // Mamba-2, in the order in which product<kX>() and ssd() read them.
  __device__ void fetch_x_z_states(int layer);

  // Of the block's rows of a product.
  __device__ void fetch_rows(int layer, int phase, int first, int count, int more = 0);

  // The warp that adds, in Mamba-1: the sums of x_proj of which this block receives the parts.
  __device__ void add();

  // The warps that compute.
  __device__ void run() {
    init_residual();
#pragma unroll 1
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const DecodeLayer& w = layers[layer];
      if constexpr (kMamba2) {
        const int tid = static_cast<int>(threadIdx.x), row = tid >> shift(), t = tid & ((1 << shift()) - 1);
        const bool own = row < min(kPassRows<kX>, channels.count) && t < tokens();
        early = own ? load_operands<kX>(w, layer, channels.begin + row, t) : Operands{};
        product<kSmall>(w, layer);
        product<kX>(w, layer);
      } else {
        // Parts of B, C, dt, their sums, and those on their way to all blocks while z is multiplied.
        product<kX>(w, layer);
        multiply_small(layer);
        if (kTokens == 1) load_early(w, layer);
        product<kZ>(w, layer);
        if (kTokens > 1) load_early(w, layer);  // there are no registers for it before
      }
      if (channels.count > 0) {
        if constexpr (kMamba2) {
          ssd(w, layer);
        } else {
          scan(w, layer);
        }
      }
      product<kOut>(w, layer);
    }
    if (a.logits != nullptr) product<kHead>(layers[0], a.n_layer);
  }

 private:
  // The matrix products of a layer, and the head. A block's rows of x and z are those of its own channels.
  static constexpr int kX = kMamba2 ? 1 : 0, kSmall = kMamba2 ? 0 : 1, kZ = 2, kOut = 3, kHead = 4;
  static constexpr int kPackets = packets_of_two(kMamba2, sizeof(W) == 4);  // of two numbers handed on

  __device__ int tokens() const { return kTokens == 1 ? 1 : a.tokens; }
  __device__ int shift() const { return kTokens == 1 ? 0 : tokens_shift(a.tokens); }

  // Of the matrix, of this product's part of it.
  __device__ int first_row(int phase) const {
    if (kMamba2 && phase == kSmall) return 2 * a.d_inner;
    return phase == (kMamba2 ? kX : kZ) ? a.d_inner : 0;
  }

  __device__ Product describe(int phase) const {
    const int E = a.d_inner, D = a.d_model;
    constexpr int kInProj = offsetof(DecodeLayer, in_proj);
    switch (phase) {
      case kX: return {kInProj, first_row(kX), channels.begin, channels.count, D, l.model};
      case kZ: return {kInProj, first_row(kZ), channels.begin, channels.count, D, l.model};
      case kSmall:
        if (kMamba2) return {kInProj, first_row(kSmall), smalls.begin, smalls.count, D, l.model};
        return {offsetof(DecodeLayer, x_proj), 0, channels.begin, channels.count, small_size(a), l.x_proj};
      case kOut:
        return {offsetof(DecodeLayer, out_proj), 0, outputs.begin, outputs.count, E, l.inner};
      default: {
        const Share share(a.vocab_size);
        return {0, 0, share.begin, share.count, D, l.model};
      }
    }
  }

  // Small vectors of a layer, and what else products and scan read of this block's channels, so that both find it in
  // the second-level cache.
  __device__ void prefetch_vectors(const DecodeLayer& w, int lane) const;

  __device__ void prefetch_channels(const DecodeLayer& w, int layer, int lane) const;

  template <typename T>
  __device__ T* at(int offset) const { return reinterpret_cast<T*>(base + offset); }
  __device__ int conv_channels() const { return a.d_inner + (kMamba2 ? 2 * a.n_groups * a.d_state : 0); }
  __device__ float* window(int t, int layer) const { return at<float*>(l.slots)[t] + layer * a.layer_conv_state; }
  static constexpr int kStateBytes = sizeof(S);
  __device__ S* ssm_state(int t, int layer) const {
    return reinterpret_cast<S*>(at<float*>(l.slots)[t] + a.conv_state) + layer * a.layer_ssm_state;
  }
  __device__ char* fragments() const {
    return base + l.fragments + static_cast<int>(threadIdx.x) / kWarp * tokens() * stride();
  }
  __device__ int stride() const { return l.warp_chunks * kFragment; }  // bytes from vector to vector of a warp
  __device__ const W* embedding(int t) const { return at<const W*>(l.embeddings)[t]; }

  // The residual stream of this block's rows of out_proj lies in shared memory: [row << shift() | token].
  __device__ void init_residual() {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < outputs.count << shift(); i += kThreads) {
      const int t = i & ((1 << shift()) - 1);
      if (t < tokens()) at<float>(l.residual)[i] = to_float(embedding(t)[outputs.begin + (i >> shift())]);
    }
    block_barrier();
  }

  // ---- Products -----------------------------------------------------------------------------------------------------

  // float16 ends at 65504, which a residual stream may exceed: it is scaled down before the norm.
  static constexpr float kScale = std::is_same_v<W, __half> ? 0x1p-6f : 1;

  // Whether a product reads y [E] instead of the residual stream [D], and whether what it reads is normed.
  template <int kPhase>
  static constexpr bool kInner = kPhase == kOut;
  template <int kPhase>
  static constexpr bool kNormed = !kInner<kPhase> || kMamba2;

  // Rows whose sums all meet at a time. In Mamba-2, those of x take z's along.
  template <int kPhase>
  static constexpr bool kWithZ = kMamba2 && kPhase == kX;
  template <int kPhase>
  static constexpr int kPassRows =
      kSums / (kTokens == 1 ? 1 : kMaxDecodeTokens) / (kTokens == 1 || kWithZ<kPhase> ? 2 : 1);

  // Rows of one product, their sums handed over, stored, or kept for the scan.
  template <int kPhase>
  __device__ void product(const DecodeLayer& w, int layer);

  template <int kPhase>
  __device__ void receive_vector(const DecodeLayer& w, int layer, float (&squares)[kTokens]);

  // As receive().
  __device__ void receive_embedding(const float* norm, const Slice& slice, float (&squares)[kTokens]);

  // The warp's sums of squares: [warp, token].
  __device__ void store_squares(const float (&squares)[kTokens]);

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
  __device__ Operands load_operands(const DecodeLayer& w, int layer, int row, int t) const;

  __device__ float convolve(int layer, int c, int t, float v, const Operands& o) const;

  // `mine` is the row among those of this block, `row` that among all blocks'.
  template <int kPhase>
  __device__ float finish(int layer, int mine, int row, int t, float sum, const Operands& o);

  // Mamba-1: the parts of dt, B and C that come from this block's channels, to the blocks that add them up. Four lanes
  // share four sums, each with a channel of four that follow each other.
  __device__ void multiply_small(int layer);

  // ---- Scan ---------------------------------------------------------------------------------------------------------

  // dt, B and C, or B, C and dt, of all tokens, to shared memory: [token, small_stride].
  __device__ void receive_small(int layer);

  // What the scan of a channel needs, loaded before the others' part is there. A lane has the columns
  // [8 (lane % kLanes + i kLanes), + 8) of dt_proj and the states lane % kLanes + i kLanes.
  struct Channel {
    uint4 dt_proj[4][sizeof(W) / 2];
    float A[2], D, dt_bias;
  };

  __device__ Channel load_channel(const DecodeLayer& w, int channel) const;

  __device__ void load_states(S (&h)[2], int t, int layer, int channel) const;

  // 1 / root mean square of a part of what was received, by a whole warp: Falcon-Mamba's norm without weight.
  __device__ float norm_factor(const float* v, int size) const;

  __device__ int first_channel() const {
    const int row = static_cast<int>(threadIdx.x) / kLanes;
    return channels.begin + min(row, channels.count - 1);
  }

  // What scan() begins with.
  __device__ void load_early(const DecodeLayer& w, int layer);

  // dt_proj and the selective scan of this block's channels.
  __device__ void scan(const DecodeLayer& w, int layer);

  // What the state update needs of a row's head; B is the place of its group's.
  struct Head {
    int head, B;
    float A, D, dt_bias;
  };
  __device__ Head load_head(const DecodeLayer& w, int row) const {
    const int2 place = at<int2>(l.rows)[row];
    return {place.x, place.y, w.A[place.x], w.D[place.x], w.dt_bias[place.x]};
  }

  // State update of Mamba-2 and the gate: this block's rows [N] of the state [H, P, N].
  __device__ void ssd(const DecodeLayer& w, int layer);

  const DecodeStepArgs& a;
  const Exchange& e;
  const SharedLayout& l;
  const Ring& ring;
  char* const base;  // of shared memory
  const Share channels, smalls, outputs;
  const float per_model, per_group;  // 1 / columns of what is normed together
  const Slice model_slice, inner_slice;
  const DecodeLayer* layers;
  int set;  // of packets, of this step
  RingPosition ring_at;
  unsigned ring_free = static_cast<unsigned>(ring.stages);  // of the warp that fetches
  Operands early;  // of Mamba-2's rows of x, whose product has nothing to wait for
  Channel early_channel;  // of Mamba-1's scan
  S early_states[2];
  int buffer = 0, sums_buffer = 0;  // of squares and sums: a warp may be a product ahead of those who still add up
};

}  // namespace m4j::cuda
