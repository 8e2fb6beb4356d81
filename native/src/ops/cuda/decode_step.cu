#include "ops/cuda/decode_step.h"

#include <cstddef>
#include <type_traits>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/decode_layout.cuh"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

// The warps that compute.
__device__ void block_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// Of the lanes that share a row, for each of them.
__device__ float row_sum(float v) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) v += __shfl_xor_sync(~0u, v, lanes);
  return v;
}

template <typename W, typename S, bool kMamba2, int kTokens>
class Step {
 public:
  __device__ Step(const DecodeStepArgs& args, const Exchange& exchange, const SharedLayout& shape, const Ring& weights,
                  char* shared)
      : a(args), e(exchange), l(shape), ring(weights), base(shared), channels(args.d_inner),
        smalls(small_size(args)), outputs(args.d_model), per_model(1.0f / static_cast<float>(args.d_model)),
        per_group(static_cast<float>(kMamba2 ? args.n_groups : 1) / static_cast<float>(args.d_inner)),
        model_slice(slice_of_warp(args.d_model, 1)), inner_slice(slice_of_warp(args.d_inner, kMamba2 ? args.n_groups : 1)) {
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
  __device__ void fetch() {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll 1
    for (int layer = 0; layer <= a.n_layer; ++layer) {
      const bool last = layer == a.n_layer;
      if (last && a.logits == nullptr) break;
      if (!last) {
        if (layer + 1 < a.n_layer && static_cast<int>(blockIdx.x) == layer % static_cast<int>(gridDim.x)) {
          prefetch_vectors(layers[layer + 1], lane);
        }
        prefetch_channels(layers[layer], layer, lane);
      }
#pragma unroll 1
      for (int phase = last ? kHead : 0; phase <= (last ? kHead : kOut); ++phase) {
        if (!kMamba2 || phase != kX) {
          // What Mamba-1 reads between x and z is little.
          const bool more = !kMamba2 && (phase == kSmall || phase == kZ);
          fetch_rows(layer, phase, 0, at<Product>(l.products)[phase].count, more);
        } else {
          fetch_x_z_states(layer);
          phase = kZ;
        }
      }
    }
  }

  // Mamba-2, in the order in which product<kX>() and ssd() read them.
  __device__ void fetch_x_z_states(int layer) {
#pragma unroll 1
    for (int first = 0; first < channels.count; first += kPassRows<kX>) {
      const int count = min(kPassRows<kX>, channels.count - first);
      fetch_rows(layer, kX, first, count);
      fetch_rows(layer, kZ, first, count);
    }
#pragma unroll 1
    for (int t = 0; t < tokens(); ++t) {
      const S* from = ssm_state(t, layer) + static_cast<int64_t>(channels.begin) * a.d_state;
      ring.fetch(ring_at, ring_free, reinterpret_cast<const char*>(from), kStateBytes * a.d_state, channels.count, l.state);
    }
  }

  // Of the block's rows of a product.
  __device__ void fetch_rows(int layer, int phase, int first, int count, int more = 0) {
    const Product& p = at<Product>(l.products)[phase];
    const int row_bytes = p.columns * static_cast<int>(sizeof(W));
    const char* place = reinterpret_cast<const char*>(layers + layer) + p.matrix;
    const char* matrix =
        phase == kHead ? static_cast<const char*>(a.lm_head) : *reinterpret_cast<const char* const*>(place);
    const char* from = matrix + static_cast<int64_t>(p.first + p.begin + first) * row_bytes;
    ring.fetch(ring_at, ring_free, from, row_bytes, count, p.tiles, more);
  }

  // The warp that adds, in Mamba-1: the sums of x_proj of which this block receives the parts.
  __device__ void add() {
    constexpr int kRows = kTokens == 1 ? 2 : 1, kSumsAtOnce = kRows * kTokens, kBatch = 5;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, parts = part_count(a, static_cast<int>(gridDim.x));
#pragma unroll 1
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const auto tag = static_cast<unsigned>(layer) + 1;
#pragma unroll 1
      for (int first = 0; first < smalls.count; first += kRows) {
        const int count = min(kSumsAtOnce, (smalls.count - first) * tokens());
        const Packet* from = e.parts + set + (smalls.begin + first) * tokens() * parts;
        float sums[kSumsAtOnce] = {};
#pragma unroll 1
        for (int begin = lane; begin - lane < parts; begin += kBatch * kWarp) {
          Packet v[kSumsAtOnce][kBatch];
#pragma unroll
          for (auto& row : v) {
#pragma unroll
            for (Packet& one : row) one = packet(0, tag - 1);
          }
          for (bool missing = true; __any_sync(~0u, missing);) {
            missing = false;
#pragma unroll
            for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
              for (int j = 0; j < kBatch; ++j) {
                const int part = begin + j * kWarp;
                if (i < count && part < parts && !has_tag(v[i][j], tag)) v[i][j] = look(from + i * parts + part);
              }
            }
#pragma unroll
            for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
              for (int j = 0; j < kBatch; ++j) {
                missing |= i < count && begin + j * kWarp < parts && !has_tag(v[i][j], tag);
              }
            }
          }
#pragma unroll
          for (int i = 0; i < kSumsAtOnce; ++i) {
#pragma unroll
            for (const Packet one : v[i]) sums[i] += value_of(one);
          }
        }
#pragma unroll
        for (int i = 0; i < kSumsAtOnce; ++i) {
          if (i >= count) break;
          const float sum = warp_sum(sums[i]);
          const int row = smalls.begin + first + i / kTokens, t = i % kTokens;
          if (lane == i) publish(e.small + set + t * small_size(a) + row, sum, tag);
        }
      }
    }
  }

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
  __device__ void prefetch_vectors(const DecodeLayer& w, int lane) const {
    const int C = conv_channels(), heads = kMamba2 ? a.n_heads : a.d_inner;
    const auto floats = [&](int turn, const float* p, int n) {
      if (lane == turn && p != nullptr) prefetch(p, n * 4);
    };
    floats(0, w.norm, a.d_model);
    floats(1, w.conv_weight, a.d_conv * C);
    floats(2, w.conv_bias, C);
    floats(3, w.dt_bias, heads);
    floats(4, w.D, heads);
    floats(5, w.in_proj_bias, a.in_proj_rows);
    floats(6, w.out_proj_bias, a.d_model);
    if (kMamba2) {
      floats(7, w.mixer_norm, a.d_inner);
      floats(8, w.A, heads);
    }
  }

  __device__ void prefetch_channels(const DecodeLayer& w, int layer, int lane) const {
    if (kMamba2 && lane < a.tokens * (a.d_conv - 1)) {
      const int C = conv_channels(), begin = min(a.d_inner + smalls.begin, C);
      prefetch(window(lane % a.tokens, layer) + lane / a.tokens * C + begin, min(smalls.count, C - begin) * 4);
    }
    if (channels.count == 0) return;
    const int C = conv_channels(), begin = channels.begin, bytes = channels.count * 4;
#pragma unroll 1
    for (int i = lane; i < a.tokens * (a.d_conv - 1); i += kWarp) {
      prefetch(window(i % a.tokens, layer) + i / a.tokens * C + begin, bytes);
    }
    if constexpr (!kMamba2) {
#pragma unroll 1
      for (int i = lane; i < a.tokens * a.d_state; i += kWarp) {
        prefetch(ssm_state(i % a.tokens, layer) + static_cast<int64_t>(i / a.tokens) * a.d_inner + begin,
                 channels.count * kStateBytes);
      }
#pragma unroll 1
      for (int n = lane; n < a.d_state; n += kWarp) {
        prefetch(w.A + static_cast<int64_t>(n) * a.d_inner + begin, bytes);
      }
      if (lane == 0) {
        const int64_t row_bytes = a.dt_rank_padded * static_cast<int64_t>(sizeof(W));
        prefetch(static_cast<const char*>(w.dt_proj) + begin * row_bytes, channels.count * row_bytes);
      }
    }
  }

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
  static constexpr int kPassRows = kSums / (kTokens == 1 ? 1 : kMaxDecodeTokens) / (kTokens == 1 || kWithZ<kPhase> ? 2 : 1);

  // Rows of one product, their sums handed over, stored, or kept for the scan.
  template <int kPhase>
  __device__ void product(const DecodeLayer& w, int layer) {
    const Share share = kPhase == kOut     ? outputs
                        : kPhase == kSmall ? smalls
                        : kPhase == kHead  ? Share(a.vocab_size)
                                           : channels;
    if (share.count == 0) return;
    const int tid = static_cast<int>(threadIdx.x), warp = tid / kWarp, t = tid & ((1 << shift()) - 1);
    const Slice& slice = kInner<kPhase> ? inner_slice : model_slice;
    const Tiles& tiles = kInner<kPhase> ? l.inner : l.model;
    const int row_bytes = (kInner<kPhase> ? a.d_inner : a.d_model) * static_cast<int>(sizeof(W));
    constexpr int kRows = kPassRows<kPhase>;
#pragma unroll 1
    for (int first = 0; first < share.count; first += kRows) {
      const int count = min(kRows, share.count - first), i = tid >> shift();
      const bool own = i < count && t < tokens();
      const bool own_z = kWithZ<kPhase> && i >= kRows && i < kRows + count && t < tokens();
      const int mine = first + i - (own_z ? kRows : 0), row = share.begin + mine;
      Operands operands{}, operands_z{};
      if (kWithZ<kPhase> && first == 0) {
        operands = early;
      } else if (own) {
        operands = load_operands<kPhase>(w, layer, row, t);
      }
      if (own_z) operands_z = load_operands<kZ>(w, layer, row, t);
      float squares[kTokens] = {};
      // x and z read the same vector, and so do B, C, dt of Mamba-2.
      const bool fresh = first == 0 && kPhase != kZ && !(kWithZ<kPhase> && smalls.count > 0);
      if (fresh) receive_vector<kPhase>(w, layer, squares);
      float* sums = at<float>(l.sums) + sums_buffer * kWarps * kSums;
#pragma unroll 1
      for (int part = 0; part <= static_cast<int>(kWithZ<kPhase>); ++part) {
        multiply<W, (kTokens + 1) / 2>(ring, ring_at, slice, fragments(), stride(), tokens(), shift(), count, row_bytes,
                                       tiles.shift, tiles.rows, sums + warp * kSums + (part * kRows << shift()));
      }
      if (kNormed<kPhase> && fresh) {
        buffer ^= 1;
        store_squares(squares);
      }
      block_barrier();
      if (own) finish<kPhase>(layer, mine, row, t, total<kPhase>(sums + tid, t), operands);
      if (own_z) finish<kZ>(layer, mine, row, t, total<kPhase>(sums + tid, t), operands_z);
      sums_buffer ^= 1;
    }
  }

  template <int kPhase>
  __device__ void receive_vector(const DecodeLayer& w, int layer, float (&squares)[kTokens]) {
    constexpr bool kStream = !kInner<kPhase>;  // the residual stream
    const float* norm = kPhase == kHead ? a.norm_f : kStream ? w.norm : kMamba2 ? w.mixer_norm : nullptr;
    if (kStream && kPhase != kHead && layer == 0) return receive_embedding(norm, model_slice, squares);
    receive<W, kTokens>((kStream ? e.x : e.y) + set, kStream ? a.d_model : a.d_inner,
                        static_cast<unsigned>(kStream ? layer : layer + 1), norm, kNormed<kPhase> ? kScale : 1,
                        kStream ? model_slice : inner_slice, tokens(), fragments(), stride(), squares);
  }

  // As receive().
  __device__ void receive_embedding(const float* norm, const Slice& slice, float (&squares)[kTokens]) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens()) break;
      const W* from = embedding(t) + slice.begin;
#pragma unroll 1
      for (int k = 2 * (static_cast<int>(threadIdx.x) % kWarp); k < slice.size; k += 2 * kWarp) {
        const float v0 = to_float(from[k]), v1 = to_float(from[k + 1]);
        const float* g = norm + slice.begin + k;
        squares[t] = fmaf(v0, v0, fmaf(v1, v1, squares[t]));
        put_fragment<W>(fragments() + t * stride(), k, v0 * g[0] * kScale, v1 * g[1] * kScale);
      }
    }
    __syncwarp();
  }

  // The warp's sums of squares: [warp, token].
  __device__ void store_squares(const float (&squares)[kTokens]) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (t >= tokens()) break;
      const float sum = warp_sum(squares[t]);
      if (lane == 0) at<float>(l.squares)[(buffer * kWarps + warp) * kMaxDecodeTokens + t] = sum;
    }
  }

  // What the warps' slices add up to, each group of columns divided by its root mean square if they were normed.
  template <int kPhase>
  __device__ float total(const float* sums, int t) const {
    const float* squares = at<float>(l.squares) + buffer * kWarps * kMaxDecodeTokens + t;
    const int groups = kMamba2 && kPhase == kOut ? a.n_groups : 1;
    const auto part = [&](float sum, float square) {
      const float per = kInner<kPhase> ? per_group : per_model;
      return kNormed<kPhase> ? sum * rsqrtf(fmaf(square, per, a.norm_eps)) * (1 / kScale) : sum;
    };
    float sum = 0, square = 0;
    if (groups == 1) {
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        sum += sums[w * kSums];
        if (kNormed<kPhase>) square += squares[w * kMaxDecodeTokens];
      }
      return part(sum, square);
    }
    float result = 0;
#pragma unroll 1
    for (int w = 0; w < groups * warps_of_group(groups); ++w) {
      sum += sums[w * kSums];
      square += squares[w * kMaxDecodeTokens];
      if ((w + 1) % warps_of_group(groups) != 0) continue;
      result += part(sum, square);
      sum = square = 0;
    }
    return result;
  }

  // What a row needs besides, loaded before its sum is there.
  struct Operands {
    float bias, past[kMaxConv - 1], weight[kMaxConv], conv_bias;
  };

  // The channel of the convolution that a row of the product feeds, or -1.
  template <int kPhase>
  __device__ int conv_channel(int row) const {
    if (kPhase == kX) return row;
    return kMamba2 && kPhase == kSmall && row < 2 * a.n_groups * a.d_state ? a.d_inner + row : -1;
  }

  template <int kPhase>
  __device__ Operands load_operands(const DecodeLayer& w, int layer, int row, int t) const {
    Operands o{};
    if (kPhase == kOut && w.out_proj_bias != nullptr) o.bias = w.out_proj_bias[row];
    if (!kInner<kPhase> && kPhase != kHead && w.in_proj_bias != nullptr) {
      o.bias = w.in_proj_bias[first_row(kPhase) + row];
    }
    const int c = conv_channel<kPhase>(row), C = conv_channels();
    if (c < 0) return o;
#pragma unroll
    for (int k = 0; k < kMaxConv; ++k) {
      if (k < a.d_conv) o.weight[k] = w.conv_weight[k * C + c];
      if (k < a.d_conv - 1) o.past[k] = window(t, layer)[k * C + c];
    }
    if (w.conv_bias != nullptr) o.conv_bias = w.conv_bias[c];
    return o;
  }

  __device__ float convolve(int layer, int c, int t, float v, const Operands& o) const {
    float* past = window(t, layer);
    const int C = conv_channels();
    float y = o.conv_bias;
#pragma unroll
    for (int k = 0; k < kMaxConv; ++k) {
      if (k >= a.d_conv) break;
      const float x = k < a.d_conv - 1 ? o.past[k < kMaxConv - 1 ? k : 0] : v;
      y = fmaf(o.weight[k], x, y);
      if (k > 0) past[(k - 1) * C + c] = x;
    }
    return silu(y);
  }

  // `mine` is the row among those of this block, `row` that among all blocks'.
  template <int kPhase>
  __device__ void finish(int layer, int mine, int row, int t, float sum, const Operands& o) {
    float v = sum + o.bias;
    const int i = mine << shift() | t, c = conv_channel<kPhase>(row);
    const auto tag = static_cast<unsigned>(layer) + 1;
    if (c >= 0) v = convolve(layer, c, t, v, o);
    if constexpr (kPhase == kHead) {
      a.logits[static_cast<int64_t>(t) * a.vocab_size + row] = v;
    } else if constexpr (kPhase == kZ) {
      at<float>(l.z)[i] = v;
    } else if constexpr (kPhase == kX) {
      at<float>(l.u)[i] = v;
    } else if constexpr (kPhase == kSmall) {
      publish(e.small + set + t * small_size(a) + row, v, tag);
    } else {
      v += at<float>(l.residual)[i];
      publish(e.x + set + t * a.d_model + row, v, tag);
      at<float>(l.residual)[i] = v;
    }
  }

  // Mamba-1: the parts of dt, B and C that come from this block's channels, to the blocks that add them up. Four lanes
  // share four sums, each with a channel of four that follow each other.
  __device__ void multiply_small(int layer) {
    constexpr int kColumns = 4, kGroup = kLanes * kColumns;  // sums of a lane and of a warp
    constexpr int kRounds = (kMaxRank + 2 * kMaxScanState + kWarps * kGroup - 1) / (kWarps * kGroup);
    static_assert(kWarp / kLanes == kColumns);
    if (channels.count == 0) return;
    block_barrier();
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int size = small_size(a), pitch = row_pitch(size * static_cast<int>(sizeof(W)));
    const int mine = lane / kLanes, column = warp * kGroup + lane % kLanes * kColumns, stage_rows = 1 << l.x_proj.shift;
    float sums[kRounds][kTokens][kColumns] = {};
#pragma unroll 1
    for (int first = 0; first < channels.count; first += l.x_proj.rows) {
      const int count = min(l.x_proj.rows, channels.count - first);
      ring.wait(ring_at);
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int from = column + round * kWarps * kGroup;
        if (from >= size) break;
#pragma unroll 1
        for (int begin = 0; begin < count; begin += stage_rows) {
          const char* rows = ring.row(ring_at, begin, pitch, l.x_proj.shift) + from * static_cast<int>(sizeof(W));
          const float* u = at<float>(l.u) + ((first + begin) << shift());
          const int end = min(stage_rows, count - begin);
#pragma unroll 4
          for (int i = mine; i < end; i += kWarp / kLanes) {
            const Packed<W, kColumns> w = *reinterpret_cast<const Packed<W, kColumns>*>(rows + i * pitch);
#pragma unroll
            for (int t = 0; t < kTokens; ++t) {
              if (t >= tokens()) break;
              const float v = u[i << shift() | t];
#pragma unroll
              for (int c = 0; c < kColumns; ++c) sums[round][t][c] = fmaf(w[c], v, sums[round][t][c]);
            }
          }
        }
      }
      ring.release(ring_at, count, l.x_proj.shift);
    }
    // A part is known by the block's number, or that of its channel where only some have one.
    const int parts = part_count(a, static_cast<int>(gridDim.x));
    const int part = min(static_cast<int>(blockIdx.x), channels.begin);
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int from = warp * kGroup + round * kWarps * kGroup;
      if (from >= size) break;
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        if (t >= tokens()) break;
        float sum = 0;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          float v = sums[round][t][c];
          v += __shfl_xor_sync(~0u, v, kLanes);
          v += __shfl_xor_sync(~0u, v, 2 * kLanes);
          if (mine == c) sum = v;
        }
        const int row = from + lane % kLanes * kColumns + mine;
        if (row < size) {
          publish(e.parts + set + (row * tokens() + t) * parts + part, sum, static_cast<unsigned>(layer) + 1);
        }
      }
    }
  }

  // ---- Scan ---------------------------------------------------------------------------------------------------------

  // dt, B and C, or B, C and dt, of all tokens, to shared memory: [token, small_stride].
  __device__ void receive_small(int layer) {
    const int size = small_size(a);
#pragma unroll 1
    for (int t = 0; t < tokens(); ++t) {
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) {
        Packet v;
        do {
          v = look(e.small + set + t * size + i);
        } while (!has_tag(v, static_cast<unsigned>(layer) + 1));
        at<float>(l.small)[t * small_stride(a) + i] = value_of(v);
      }
    }
    block_barrier();
  }

  // What the scan of a channel needs, loaded before the others' part is there. A lane has the columns
  // [8 (lane % kLanes + i kLanes), + 8) of dt_proj and the states lane % kLanes + i kLanes.
  struct Channel {
    uint4 dt_proj[4][sizeof(W) / 2];
    float A[2], D, dt_bias;
  };

  __device__ Channel load_channel(const DecodeLayer& w, int channel) const {
    Channel c{};
    const int E = a.d_inner, j = static_cast<int>(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = 8 * (j + i * kLanes);
      if (r >= a.dt_rank_padded) continue;
      const W* row = static_cast<const W*>(w.dt_proj) + static_cast<int64_t>(channel) * a.dt_rank_padded;
      const auto* from = reinterpret_cast<const uint4*>(row + r);
#pragma unroll
      for (int v = 0; v < static_cast<int>(sizeof(W)) / 2; ++v) c.dt_proj[i][v] = from[v];
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t n = j + i * kLanes;
      if (n >= a.d_state) continue;
      c.A[i] = w.A[n * E + channel];
    }
    c.D = w.D[channel];
    c.dt_bias = w.dt_bias[channel];
    return c;
  }

  __device__ void load_states(S (&h)[2], int t, int layer, int channel) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int n = static_cast<int>(threadIdx.x) % kLanes + i * kLanes;
      if (n < a.d_state) h[i] = ssm_state(t, layer)[static_cast<int64_t>(n) * a.d_inner + channel];
    }
  }

  // 1 / root mean square of a part of what was received, by a whole warp: Falcon-Mamba's norm without weight.
  __device__ float norm_factor(const float* v, int size) const {
    float squares = 0;
    for (int i = static_cast<int>(threadIdx.x) % kWarp; i < size; i += kWarp) squares = fmaf(v[i], v[i], squares);
    return rsqrtf(warp_sum(squares) / static_cast<float>(size) + a.mixer_norm_eps);
  }

  __device__ int first_channel() const {
    const int row = static_cast<int>(threadIdx.x) / kLanes;
    return channels.begin + min(row, channels.count - 1);
  }

  // What scan() begins with.
  __device__ void load_early(const DecodeLayer& w, int layer) {
    if (channels.count == 0) return;
    early_channel = load_channel(w, first_channel());
    load_states(early_states, 0, layer, first_channel());
  }

  // dt_proj and the selective scan of this block's channels.
  __device__ void scan(const DecodeLayer& w, int layer) {
    const int E = a.d_inner, N = a.d_state, R = a.dt_rank_padded;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int j = lane % kLanes, mine = lane / kLanes, last = channels.count - 1;
    Channel following = early_channel;
    S states[2] = {early_states[0], early_states[1]};
    receive_small(layer);
    for (int first = warp * kRowsOfWarp; first < channels.count; first += kWarps * kRowsOfWarp) {
      const bool own = first + mine < channels.count;
      const int row = min(first + mine, last), channel = channels.begin + row;
      const bool more = first + kThreads / kLanes < channels.count;
      const int next = channels.begin + min(first + kThreads / kLanes + mine, last);
      const Channel c = following;
      if (more) following = load_channel(w, next);
#pragma unroll 1
      for (int t = 0; t < tokens(); ++t) {
        const S h0[2] = {states[0], states[1]};
        if (t + 1 < tokens()) {
          load_states(states, t + 1, layer, channel);
        } else if (more) {
          load_states(states, 0, layer, next);
        }
        const float* dt = at<float>(l.small) + t * small_stride(a);
        const float *B = dt + R, *C = B + N;
        float dt_factor = 1, B_factor = 1, C_factor = 1;
        if (a.falcon) {
          dt_factor = norm_factor(dt, a.dt_rank);
          B_factor = norm_factor(B, N);
          C_factor = norm_factor(C, N);
        }
        float delta = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int r = 8 * (j + i * kLanes);
          if (r >= R) continue;
          const W* weight = reinterpret_cast<const W*>(c.dt_proj[i]);
          const float4 low = *reinterpret_cast<const float4*>(dt + r);
          const float4 high = *reinterpret_cast<const float4*>(dt + r + 4);
          const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
          for (int k = 0; k < 8; ++k) delta = fmaf(to_float(weight[k]), v[k], delta);
        }
        delta = softplus(fmaf(row_sum(delta), dt_factor, c.dt_bias));
        const float u = at<float>(l.u)[row << shift() | t], z = at<float>(l.z)[row << shift() | t];
        float y = 0;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int n = j + i * kLanes;
          if (n >= N) continue;
          const float h = fmaf(exp2_fast(kLog2e * delta * c.A[i]), to_float(h0[i]), delta * (B[n] * B_factor) * u);
          if (own) ssm_state(t, layer)[static_cast<int64_t>(n) * E + channel] = to_state<S>(h);
          y = fmaf(C[n] * C_factor, h, y);
        }
        y = row_sum(y);
        if (own && j == 0) {
          publish(e.y + set + t * E + channel, fmaf(c.D, u, y) * silu(z), static_cast<unsigned>(layer) + 1);
        }
      }
    }
  }

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
  __device__ void ssd(const DecodeLayer& w, int layer) {
    const int E = a.d_inner, N = a.d_state, GN = a.n_groups * N;
    const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
    const int j = lane % kLanes;
    const int mine = warp * kRowsOfWarp + lane / kLanes;
    const auto row_of = [&](int first) { return first + min(mine, min(l.state.rows, channels.count - first) - 1); };
    Head following = load_head(w, row_of(0));
    receive_small(layer);
#pragma unroll 1
    for (int t = 0; t < tokens(); ++t) {
#pragma unroll 1
      for (int first = 0; first < channels.count; first += l.state.rows) {
        const int count = min(l.state.rows, channels.count - first);
        const bool own = mine < count;
        const int row = row_of(first), channel = channels.begin + row;
        const Head h = following;
        if (channels.count > l.state.rows) {
          following = load_head(w, row_of(first + count < channels.count ? first + count : 0));
        }
        const float* small = at<float>(l.small) + t * small_stride(a);
        const float* B = small + h.B;
        const float* C = B + GN;
        const char* place = ring.row(ring_at, row - first, row_pitch(N * kStateBytes), l.state.shift);
        const auto* from = reinterpret_cast<const Packed<S, 4>*>(place);
        auto* state = reinterpret_cast<Packed<S, 4>*>(ssm_state(t, layer) + static_cast<int64_t>(channel) * N);
        const float x = at<float>(l.u)[row << shift() | t], z = at<float>(l.z)[row << shift() | t];
        const float dt = fminf(fmaxf(softplus(small[2 * GN + h.head] + h.dt_bias), a.dt_min), a.dt_max);
        const float decay = exp2_fast(kLog2e * dt * h.A), dtx = dt * x;
        float y = 0;
        ring.wait(ring_at);
#pragma unroll 2
        for (int n = j; n < N / 4; n += kLanes) {
          const Packed<S, 4> h0 = from[n];
          Packed<S, 4> rounded = {};
          float4 v;
          const float4 b = reinterpret_cast<const float4*>(B)[n], c = reinterpret_cast<const float4*>(C)[n];
          v.x = fmaf(decay, h0[0], dtx * b.x);
          v.y = fmaf(decay, h0[1], dtx * b.y);
          v.z = fmaf(decay, h0[2], dtx * b.z);
          v.w = fmaf(decay, h0[3], dtx * b.w);
          rounded.set(0, to_state<S>(v.x));
          rounded.set(1, to_state<S>(v.y));
          rounded.set(2, to_state<S>(v.z));
          rounded.set(3, to_state<S>(v.w));
          if (own) state[n] = rounded;
          y += v.x * c.x + v.y * c.y + v.z * c.z + v.w * c.w;
        }
        ring.release(ring_at, count, l.state.shift);
        y = row_sum(y);
        if (own && j == 0) {
          publish(e.y + set + t * E + channel, fmaf(h.D, x, y) * silu(z), static_cast<unsigned>(layer) + 1);
        }
      }
    }
  }

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

constexpr int threads_of_block(bool mamba2) { return kThreads + (mamba2 ? 1 : 2) * kWarp; }

template <typename W, typename S, bool kMamba2, int kTokens>
__global__ void __launch_bounds__(threads_of_block(kMamba2), 1)
    decode_step_kernel(const __grid_constant__ DecodeStepArgs args, const __grid_constant__ Exchange exchange,
                       const __grid_constant__ SharedLayout shape) {
  extern __shared__ float4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(base + shape.barriers);
  const Ring ring{base + shape.ring, barriers, reinterpret_cast<unsigned*>(barriers + kMaxStages), shape.stages,
                  shape.stage_bytes};
  ring.init();
  Step<W, S, kMamba2, kTokens> step(args, exchange, shape, ring, base);
  if (threadIdx.x < kThreads) {
    step.run();
  } else if (threadIdx.x < kThreads + kWarp) {
    step.fetch();
  } else if constexpr (!kMamba2) {
    step.add();
  }
}

template <typename W, typename S, bool kMamba2, int kTokens>
void launch(DecodeStepArgs a, cudaStream_t stream) {
  const auto kernel = decode_step_kernel<W, S, kMamba2, kTokens>;
  const Device device = Device::current();
  SharedLayout shape = shared_layout(a, device);
  const int bytes = shape.ring + shape.stages * shape.stage_bytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "decode_step");
  Exchange exchange;
  layout(a, device.multiprocessors, &exchange);
  void* arguments[] = {&a, &exchange, &shape};
  check(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(device.multiprocessors)),
                                    dim3(threads_of_block(kMamba2)), arguments, static_cast<std::size_t>(bytes),
                                    stream),
        "decode_step");
}

}  // namespace

bool decode_step_fits(const DecodeStepArgs& a) {
  const Device device = Device::current();
  const bool sizes = a.mamba2 ? a.n_groups <= kWarps : a.dt_rank_padded <= kMaxRank && a.d_state <= kMaxScanState;
  return a.tokens <= kMaxDecodeTokens && (a.tokens == 1 || a.tokens * a.d_inner <= kMaxHandedOver) &&
         a.d_conv <= kMaxConv && sizes &&
         can_wait(reinterpret_cast<const void*>(decode_step_kernel<float, float, false, 1>)) &&
         device.cooperative != 0 && shared_layout(a, device).stages > 0;
}

int64_t decode_step_workspace(const DecodeStepArgs& a) {
  Exchange unused;
  return layout(a, Device::current().multiprocessors, &unused);
}

void decode_step(const DecodeStepArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename W>(W) {
    with_state_type(a.state_type, [&]<typename S>(S) {
      if (a.tokens == 1) {
        a.mamba2 ? launch<W, S, true, 1>(a, stream) : launch<W, S, false, 1>(a, stream);
      } else {
        a.mamba2 ? launch<W, S, true, kMaxDecodeTokens>(a, stream) : launch<W, S, false, kMaxDecodeTokens>(a, stream);
      }
    });
  });
}

}  // namespace m4j::cuda
