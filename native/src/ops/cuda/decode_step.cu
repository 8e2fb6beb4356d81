#include <algorithm>

#include "ops/cuda/decode_step.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/weight_ring.cuh"

namespace m4j::cuda {
namespace {

constexpr int kThreads = kWarp * kWarps;
constexpr int kMaxGroups = 8;   // of Mamba-2's gated norm
constexpr int kMaxStages = 64;  // of the ring of weights
constexpr int kMinStages = 4;
constexpr int kMaxConv = 4;     // d_conv
constexpr int kLayerWords = sizeof(DecodeLayer) / sizeof(uint64_t);
constexpr int kChannels = 8;    // of a selective scan that lie side by side in its state, and belong to one warp

// What blocks hand to each other, float32 in global memory. It is written and read in one kernel, so all of it is read
// past the first-level cache.
struct Exchange {
  unsigned* barrier;
  float* x;     // [T, D] residual stream
  float* z;     // [T, E]
  float* conv;  // [T, C]
  float* dbc;   // Mamba-1: [T, R + 2N]; Mamba-2: dt [T, H]
  float* y;     // [T, E] gated output of the scan
};

__host__ __device__ int conv_channels(const DecodeStepArgs& a) {
  return a.mamba2 ? a.d_inner + 2 * a.n_groups * a.d_state : a.d_inner;
}
__host__ __device__ int dbc_size(const DecodeStepArgs& a) {
  return a.mamba2 ? a.n_heads : a.dt_rank_padded + 2 * a.d_state;
}

// Floats of B and C, or of dt, B and C, of a token.
__host__ __device__ int small_size(const DecodeStepArgs& a) {
  return a.mamba2 ? 2 * a.n_groups * a.d_state : dbc_size(a);
}

__host__ __device__ int64_t layout(const DecodeStepArgs& a, Exchange* e) {
  int64_t used = 0;
  auto take = [&](int64_t floats) {
    float* p = reinterpret_cast<float*>(static_cast<char*>(a.workspace) + used);
    used += (floats * 4 + 255) / 256 * 256;
    return p;
  };
  e->barrier = reinterpret_cast<unsigned*>(take(1));
  e->x = take(int64_t{a.tokens} * a.d_model);
  e->z = take(int64_t{a.tokens} * a.d_inner);
  e->conv = take(int64_t{a.tokens} * conv_channels(a));
  e->dbc = take(int64_t{a.tokens} * dbc_size(a));
  e->y = take(int64_t{a.tokens} * a.d_inner);
  return used;
}

// The warps that compute.
__device__ void block_barrier() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// Those of all blocks of the grid; what was written before is seen after.
__device__ void grid_barrier(unsigned* counter, unsigned& target) {
  block_barrier();
  target += gridDim.x;
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < target);
  }
  block_barrier();
}

// The part of an array of compile-time size that a lane needs, without indexing it at run time.
template <int kCount>
__device__ float pick(const float (&v)[kCount], int i) {
  float result = v[0];
#pragma unroll
  for (int j = 1; j < kCount; ++j) result = i == j ? v[j] : result;
  return result;
}

// Sums over the block of v[0 ... kCount - 1], for every thread.
template <int kCount>
__device__ void block_sums(float (&v)[kCount], float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = warp_sum(v[i]);
    if (lane == 0) scratch[warp * kCount + i] = v[i];
  }
  block_barrier();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = 0;
    for (int w = 0; w < kWarps; ++w) v[i] += scratch[w * kCount + i];
  }
  block_barrier();
}

template <typename W, int kTokens, bool kMamba2>
class Step {
 public:
  __device__ Step(const DecodeStepArgs& args, const Ring& weights, float* shared) : a(args), ring(weights), vector(shared) {
    layout(a, &e);
    scratch = vector + kTokens * swizzled_size(max(a.d_model, a.d_inner));
    small = scratch + kWarps * max(kTokens, kMaxGroups);
    slots = reinterpret_cast<float**>(small + a.tokens * small_size(a));
    if (threadIdx.x < kTokens) slots[threadIdx.x] = a.states + a.segments[token(threadIdx.x)].slot * a.slot_stride;
    // Pointers of all layers: fetched one by one they would cost each phase a trip to memory.
    auto* to = reinterpret_cast<uint64_t*>(slots + kMaxDecodeTokens);
    const auto* from = reinterpret_cast<const uint64_t*>(a.layers);
    for (int i = static_cast<int>(threadIdx.x); i < a.n_layer * kLayerWords; i += static_cast<int>(blockDim.x)) to[i] = from[i];
    layers = reinterpret_cast<const DecodeLayer*>(to);
    __syncthreads();
  }

  // The warp that fetches; one thread of it works.
  __device__ void fetch() {
    if (threadIdx.x % kWarp != 0) return;
    unsigned tile = 0;
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const DecodeLayer& w = layers[layer];
      if (layer + 1 < a.n_layer && static_cast<int>(blockIdx.x) == layer % static_cast<int>(gridDim.x)) {
        prefetch_vectors(layers[layer + 1]);
      }
      prefetch_windows(layer);
      fetch_matrix<W>(ring, tile, w.in_proj, a.in_proj_rows, a.d_model);
      prefetch_states(w, layer);
      if (!kMamba2) fetch_matrix<W>(ring, tile, w.x_proj, dbc_size(a), a.d_inner);
      fetch_matrix<W>(ring, tile, w.out_proj, a.d_model, a.d_inner);
    }
    if (a.logits != nullptr) fetch_matrix<W>(ring, tile, a.lm_head, a.vocab_size, a.d_model);
  }

  __device__ void run() {
    embed();
    barrier();
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const DecodeLayer& w = layers[layer];
      in_proj(w, layer);
      barrier();
      if constexpr (kMamba2) {
        ssd(w, layer);
      } else {
        x_proj();
        barrier();
        scan(w, layer);
      }
      barrier();
      out_proj(w);
      barrier();
    }
    if (a.logits != nullptr) head();
  }

 private:
  __device__ void prefetch_vectors(const DecodeLayer& w) const {
    const int C = conv_channels(a), per_scan = kMamba2 ? a.n_heads : a.d_inner;
    const auto floats = [](const float* p, int n) {
      if (p != nullptr && n >= 4) prefetch(p, n / 4 * 16);
    };
    floats(w.norm, a.d_model);
    floats(w.conv_weight, a.d_conv * C);
    floats(w.conv_bias, C);
    floats(w.dt_bias, per_scan);
    floats(w.D, per_scan);
    if (kMamba2) floats(w.mixer_norm, a.d_inner);
  }

  // Of the channels among this block's rows of in_proj, widened to what a prefetch can name.
  __device__ void prefetch_windows(int layer) const {
    const int each = rows_of_tile<W>(a.d_model, ring.stage_bytes), tiles = tile_count(a.in_proj_rows, each);
    const int C = conv_channels(a), first = kMamba2 ? a.d_inner : 0;
    const int begin = max(share_begin(tiles) * each - first, 0) / 4 * 4;
    const int end = min((share_end(tiles) * each - first + 3) / 4 * 4, C);
    if (begin >= end) return;
    for (int t = 0; t < a.tokens; ++t) {
      for (int k = 0; k < a.d_conv - 1; ++k) {
        prefetch(slot(t) + layer * a.layer_conv_state + k * C + begin, (end - begin) * 4);
      }
    }
  }

  // What the scan of this layer will read besides: its part of the states, and of dt_proj.
  __device__ void prefetch_states(const DecodeLayer& w, int layer) const {
    for (int t = 0; t < a.tokens; ++t) {
      const float* state = slot(t) + a.conv_state + layer * a.layer_ssm_state;
      if constexpr (kMamba2) {
        const int begin = share_begin(a.d_inner), end = share_end(a.d_inner);
        prefetch(state + static_cast<int64_t>(begin) * a.d_state, static_cast<int64_t>(end - begin) * a.d_state * 4);
      } else {
        const int begin = share_begin(a.d_inner / kChannels) * kChannels, end = share_end(a.d_inner / kChannels) * kChannels;
        if (begin == end) return;
        for (int n = 0; n < a.d_state; ++n) {
          prefetch(state + static_cast<int64_t>(n) * a.d_inner + begin, static_cast<int64_t>(end - begin) * 4);
          if (t == 0) prefetch(w.A + static_cast<int64_t>(n) * a.d_inner + begin, static_cast<int64_t>(end - begin) * 4);
        }
        const int64_t row = a.dt_rank_padded * static_cast<int64_t>(sizeof(W));
        if (t == 0) prefetch(static_cast<const char*>(w.dt_proj) + begin * row, (end - begin) * row);
      }
    }
  }

  __device__ void barrier() { grid_barrier(e.barrier, target); }

  // kTokens may exceed the tokens there are; the last one is then computed again.
  __device__ int token(int t) const { return min(t, a.tokens - 1); }
  __device__ float* slot(int t) const { return slots[t]; }

  __device__ void embed() {
    const W* table = static_cast<const W*>(a.embedding);
    const int step = static_cast<int>(gridDim.x) * kThreads;
    for (int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x); i < a.tokens * a.d_model; i += step) {
      e.x[i] = to_float(table[static_cast<int64_t>(a.ids[i / a.d_model]) * a.d_model + i % a.d_model]);
    }
  }

  // x * weight to shared memory; scale[t] is what the norm multiplies by.
  __device__ void load_normed(const float* weight, float (&scale)[kTokens]) {
    float squares[kTokens] = {};
    for (int k = static_cast<int>(threadIdx.x) * 4; k < a.d_model; k += kThreads * 4) {
      const float4 g = __ldg(reinterpret_cast<const float4*>(weight + k));
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        float4 v = __ldcg(reinterpret_cast<const float4*>(e.x + token(t) * a.d_model + k));
        squares[t] = fmaf(v.x, v.x, fmaf(v.y, v.y, fmaf(v.z, v.z, fmaf(v.w, v.w, squares[t]))));
        v = {v.x * g.x, v.y * g.y, v.z * g.z, v.w * g.w};
        *reinterpret_cast<float4*>(vector + t * swizzled_size(a.d_model) + swizzled(k)) = v;
      }
    }
    block_sums(squares, scratch);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) scale[t] = rsqrtf(squares[t] / static_cast<float>(a.d_model) + a.norm_eps);
  }

  __device__ void load_plain(const float* from, int size) {
    for (int k = static_cast<int>(threadIdx.x) * 4; k < size; k += kThreads * 4) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        *reinterpret_cast<float4*>(vector + t * swizzled_size(size) + swizzled(k)) =
            __ldcg(reinterpret_cast<const float4*>(from + token(t) * size + k));
      }
    }
    block_barrier();
  }

  // Rows of in_proj: those that go into the convolution go on through it.
  struct InProj {
    struct Loaded {
      float bias, past[kMaxConv - 1], weight[kMaxConv], conv_bias;
    };
    const Step& s;
    const DecodeLayer& w;
    int layer;
    float scale;  // of the norm, of the lane's token

    __device__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }
    __device__ int channel(int row) const { return row - (kMamba2 ? s.a.d_inner : 0); }
    __device__ float* window() const { return s.slots[lane()] + layer * s.a.layer_conv_state; }

    __device__ Loaded load(int row) const {
      Loaded l{};
      const DecodeStepArgs& a = s.a;
      if (lane() >= a.tokens) return l;
      if (w.in_proj_bias != nullptr) l.bias = w.in_proj_bias[row];
      const int c = channel(row), C = conv_channels(a);
      if (c < 0 || c >= C) return l;
#pragma unroll
      for (int k = 0; k < kMaxConv; ++k) {
        if (k < a.d_conv) l.weight[k] = w.conv_weight[k * C + c];
        if (k < a.d_conv - 1) l.past[k] = window()[k * C + c];
      }
      if (w.conv_bias != nullptr) l.conv_bias = w.conv_bias[c];
      return l;
    }
    __device__ void store(int row, const float (&sum)[kTokens], const Loaded& l) const {
      const DecodeStepArgs& a = s.a;
      if (lane() >= a.tokens) return;
      const float v = fmaf(pick(sum, lane()), scale, l.bias);
      const int c = channel(row), C = conv_channels(a);
      if (c >= 0 && c < C) {
        float y = l.conv_bias;
#pragma unroll
        for (int k = 0; k < kMaxConv; ++k) {
          if (k >= a.d_conv) break;
          const float x = k < a.d_conv - 1 ? l.past[k < kMaxConv - 1 ? k : 0] : v;
          y = fmaf(l.weight[k], x, y);
          if (k > 0) window()[(k - 1) * C + c] = x;
        }
        s.e.conv[lane() * C + c] = silu(y);
      } else if (kMamba2 && c >= C) {
        if (c - C < a.n_heads) s.e.dbc[lane() * a.n_heads + c - C] = v;
      } else {
        s.e.z[lane() * a.d_inner + (kMamba2 ? row : row - a.d_inner)] = v;
      }
    }
  };

  __device__ void in_proj(const DecodeLayer& w, int layer) {
    float scale[kTokens];
    load_normed(w.norm, scale);
    multiply<W, kTokens>(ring, tile, a.in_proj_rows, a.d_model, vector,
                         InProj{*this, w, layer, pick(scale, static_cast<int>(threadIdx.x) % kWarp)});
  }

  // Rows that are stored as they are, times a factor, on top of what is there if `add`.
  template <bool kAdd>
  struct Plain {
    struct Loaded {
      float before;
    };
    float* out;  // [T, size]
    int64_t size;
    int tokens;
    const float* bias;
    float scale;

    __device__ float* at(int row) const { return out + threadIdx.x % kWarp * size + row; }
    __device__ bool has_token() const { return static_cast<int>(threadIdx.x % kWarp) < tokens; }
    __device__ Loaded load(int row) const {
      Loaded l{};
      if (!has_token()) return l;
      if (kAdd) l.before = __ldcg(at(row));
      if (bias != nullptr) l.before += bias[row];
      return l;
    }
    __device__ void store(int row, const float (&sum)[kTokens], const Loaded& l) const {
      if (has_token()) *at(row) = fmaf(pick(sum, static_cast<int>(threadIdx.x) % kWarp), scale, l.before);
    }
  };

  __device__ void x_proj() {
    load_plain(e.conv, a.d_inner);
    multiply<W, kTokens>(ring, tile, dbc_size(a), a.d_inner, vector, Plain<false>{e.dbc, dbc_size(a), a.tokens, nullptr, 1});
  }

  // dt_proj and the selective scan: a warp takes 8 channels, four lanes each, so that its state accesses fill sectors.
  __device__ void scan(const DecodeLayer& w, int layer) {
    constexpr int kLanes = kWarp / kChannels;
    const int E = a.d_inner, N = a.d_state, R = a.dt_rank_padded, size = dbc_size(a);
    for (int i = static_cast<int>(threadIdx.x); i < a.tokens * size; i += kThreads) small[i] = __ldcg(e.dbc + i);
    block_barrier();
    if (a.falcon) {
      for (int t = 0; t < a.tokens; ++t) {
        norm_part(small + t * size, a.dt_rank);
        norm_part(small + t * size + R, N);
        norm_part(small + t * size + R + N, N);
      }
    }
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, c = lane % kChannels, q = lane / kChannels;
    const W* dt_proj = static_cast<const W*>(w.dt_proj);
    for (int task = share_begin(E / kChannels) + warp; task < share_end(E / kChannels); task += kWarps) {
      const int channel = task * kChannels + c;
      for (int t = 0; t < a.tokens; ++t) {
        const float* dt = small + t * size;
        const float *B = dt + R, *C = B + N;
        float delta = 0;
        for (int r = q * 8; r < R; r += kLanes * 8) {
#pragma unroll
          for (int i = 0; i < 8; ++i) delta = fmaf(to_float(dt_proj[static_cast<int64_t>(channel) * R + r + i]), dt[r + i], delta);
        }
        delta += __shfl_xor_sync(~0u, delta, kChannels);
        delta += __shfl_xor_sync(~0u, delta, 2 * kChannels);
        delta = softplus(delta + w.dt_bias[channel]);
        const float u = __ldcg(e.conv + t * E + channel), z = __ldcg(e.z + t * E + channel);
        float* state = slot(t) + a.conv_state + layer * a.layer_ssm_state + channel;
        float y = 0;
#pragma unroll 4
        for (int n = q; n < N; n += kLanes) {
          const float h = fmaf(expf(delta * w.A[n * E + channel]), state[static_cast<int64_t>(n) * E], delta * B[n] * u);
          state[static_cast<int64_t>(n) * E] = h;
          y = fmaf(C[n], h, y);
        }
        y += __shfl_xor_sync(~0u, y, kChannels);
        y += __shfl_xor_sync(~0u, y, 2 * kChannels);
        if (q == 0) e.y[t * E + channel] = fmaf(w.D[channel], u, y) * silu(z);
      }
    }
  }

  // Falcon-Mamba's norm without weight, in shared memory.
  __device__ void norm_part(float* v, int size) {
    float squares[1] = {};
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) squares[0] = fmaf(v[i], v[i], squares[0]);
    block_sums(squares, scratch);
    const float scale = rsqrtf(squares[0] / static_cast<float>(size) + a.mixer_norm_eps);
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kThreads) v[i] *= scale;
    block_barrier();
  }

  // State update of Mamba-2 and the gate: a warp takes one row [N] of the state [H, P, N].
  __device__ void ssd(const DecodeLayer& w, int layer) {
    const int E = a.d_inner, N = a.d_state, H = a.n_heads, P = a.headdim, GN = a.n_groups * N, C = E + 2 * GN;
    for (int i = static_cast<int>(threadIdx.x); i < a.tokens * 2 * GN; i += kThreads) {
      small[i] = __ldcg(e.conv + i / (2 * GN) * C + E + i % (2 * GN));
    }
    block_barrier();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int begin = share_begin(E), rows = share_end(E) - begin;
#pragma unroll 2
    for (int task = warp; task < a.tokens * rows; task += kWarps) {
      const int t = task / rows, row = begin + task % rows, head = row / P;
      const float* B = small + t * 2 * GN + head / (H / a.n_groups) * N;
      const float* c = B + GN;
      float* state = slot(t) + a.conv_state + layer * a.layer_ssm_state + static_cast<int64_t>(row) * N;
      const float x = __ldcg(e.conv + t * C + row), z = __ldcg(e.z + t * E + row);
      const float dt = fminf(fmaxf(softplus(__ldcg(e.dbc + t * H + head) + w.dt_bias[head]), a.dt_min), a.dt_max);
      const float decay = expf(dt * w.A[head]), dtx = dt * x;
      float y = 0;
      for (int n = lane * 4; n < N; n += kWarp * 4) {
        float4 h = *reinterpret_cast<const float4*>(state + n);
        const float4 b = *reinterpret_cast<const float4*>(B + n), cv = *reinterpret_cast<const float4*>(c + n);
        h.x = fmaf(decay, h.x, dtx * b.x);
        h.y = fmaf(decay, h.y, dtx * b.y);
        h.z = fmaf(decay, h.z, dtx * b.z);
        h.w = fmaf(decay, h.w, dtx * b.w);
        *reinterpret_cast<float4*>(state + n) = h;
        y += h.x * cv.x + h.y * cv.y + h.z * cv.z + h.w * cv.w;
      }
      y = warp_sum(y);
      if (lane == 0) e.y[t * E + row] = fmaf(w.D[head], x, y) * silu(z);
    }
  }

  // The gated norm where there is one, projection, and the residual stream moves on.
  __device__ void out_proj(const DecodeLayer& w) {
    if constexpr (kMamba2) {
      load_group_normed(w.mixer_norm);
    } else {
      load_plain(e.y, a.d_inner);
    }
    multiply<W, kTokens>(ring, tile, a.d_model, a.d_inner, vector, Plain<true>{e.x, a.d_model, a.tokens, w.out_proj_bias, 1});
  }

  __device__ void load_group_normed(const float* weight) {
    const int E = a.d_inner, size = E / a.n_groups;
    for (int t = 0; t < kTokens; ++t) {
      float* out = vector + t * swizzled_size(E);
      for (int g = 0; g < a.n_groups; ++g) {
        float squares[1] = {};
        for (int k = g * size + static_cast<int>(threadIdx.x); k < (g + 1) * size; k += kThreads) {
          const float v = __ldcg(e.y + token(t) * E + k);
          squares[0] = fmaf(v, v, squares[0]);
          out[swizzled(k)] = v * weight[k];
        }
        block_sums(squares, scratch);
        const float scale = rsqrtf(squares[0] / static_cast<float>(size) + a.norm_eps);
        for (int k = g * size + static_cast<int>(threadIdx.x); k < (g + 1) * size; k += kThreads) out[swizzled(k)] *= scale;
      }
    }
    block_barrier();
  }

  __device__ void head() {
    float scale[kTokens];
    load_normed(a.norm_f, scale);
    multiply<W, kTokens>(ring, tile, a.vocab_size, a.d_model, vector,
                         Plain<false>{a.logits, a.vocab_size, a.tokens, nullptr,
                                      pick(scale, static_cast<int>(threadIdx.x) % kWarp)});
  }

  const DecodeStepArgs& a;
  const Ring& ring;
  Exchange e;
  float* const vector;  // shared memory: [kTokens, swizzled_size]
  float* scratch;       // of block_sums and Rows
  float* small;         // dt, B, C
  float** slots;        // [kTokens] states of the sequences
  const DecodeLayer* layers;
  unsigned target = 0;  // of the barrier
  unsigned tile = 0;    // the next of the ring
};

// Shared memory: activations, mbarriers, ring.
struct SharedLayout {
  int64_t ring_at;
  int stages, stage_bytes;
  int warps;
};

int64_t activation_floats(const DecodeStepArgs& a, int tokens) {
  return int64_t{tokens} * swizzled_size(std::max(a.d_model, a.d_inner)) + kWarps * std::max(tokens, kMaxGroups) +
         a.tokens * small_size(a) + 2 * kMaxDecodeTokens + a.n_layer * 2 * kLayerWords;
}

template <typename W, int kTokens, bool kMamba2>
__global__ void __launch_bounds__(kThreads + kWarp, 1)
    decode_step_kernel(const __grid_constant__ DecodeStepArgs args, const __grid_constant__ SharedLayout shape) {
  extern __shared__ float4 shared[];
  char* base = reinterpret_cast<char*>(shared);
  auto* barriers = reinterpret_cast<uint64_t*>(base + shape.ring_at) - 2 * kMaxStages;
  Ring ring{base + shape.ring_at, barriers, barriers + kMaxStages, shape.stages, shape.stage_bytes, shape.warps};
  ring.init();
  Step<W, kTokens, kMamba2> step(args, ring, reinterpret_cast<float*>(base));
  if (threadIdx.x < kThreads) {
    step.run();
  } else {
    step.fetch();
  }
}

// stages is 0 if the model does not fit.
SharedLayout shared_layout(const DecodeStepArgs& a, int tokens, int64_t available) {
  const int widest = std::max(a.d_model, a.d_inner);
  SharedLayout l;
  l.stage_bytes = static_cast<int>(dtype_bytes(a.dtype, widest) + 127) / 128 * 128;
  l.ring_at = (activation_floats(a, tokens) * 4 + 2 * kMaxStages * 8 + 127) / 128 * 128;
  l.stages = static_cast<int>(std::min<int64_t>(kMaxStages, (available - l.ring_at) / l.stage_bytes));
  if (l.stages < kMinStages) l.stages = 0;
  l.warps = std::min(kWarps, l.stages);
  if (l.stages > 0) l.stages -= l.stages % l.warps;
  return l;
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

int64_t available_shared() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

int template_tokens(int tokens) { return tokens <= 2 ? tokens : kMaxDecodeTokens; }

template <typename W, int kTokens, bool kMamba2>
void launch(DecodeStepArgs a, cudaStream_t stream) {
  const auto kernel = decode_step_kernel<W, kTokens, kMamba2>;
  SharedLayout shape = shared_layout(a, kTokens, available_shared());
  const int64_t bytes = shape.ring_at + int64_t{shape.stages} * shape.stage_bytes;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "decode_step");
  Exchange exchange;
  layout(a, &exchange);
  check(cudaMemsetAsync(exchange.barrier, 0, sizeof(unsigned), stream), "decode_step");
  void* arguments[] = {&a, &shape};
  check(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(device_attribute(cudaDevAttrMultiProcessorCount))),
                                    dim3(kThreads + kWarp), arguments, static_cast<size_t>(bytes), stream),
        "decode_step");
}

template <typename W, bool kMamba2>
void launch_tokens(const DecodeStepArgs& a, cudaStream_t stream) {
  switch (template_tokens(a.tokens)) {
    case 1: return launch<W, 1, kMamba2>(a, stream);
    case 2: return launch<W, 2, kMamba2>(a, stream);
    default: return launch<W, kMaxDecodeTokens, kMamba2>(a, stream);
  }
}

}  // namespace

bool decode_step_fits(const DecodeStepArgs& a) {
  constexpr int kBulkCopies = 9;  // compute capability
  return a.tokens <= kMaxDecodeTokens && a.n_groups <= kMaxGroups && a.d_conv <= kMaxConv &&
         device_attribute(cudaDevAttrComputeCapabilityMajor) >= kBulkCopies &&
         device_attribute(cudaDevAttrCooperativeLaunch) != 0 &&
         shared_layout(a, template_tokens(a.tokens), available_shared()).stages > 0;
}

int64_t decode_step_workspace(const DecodeStepArgs& a) {
  Exchange unused;
  return layout(a, &unused);
}

void decode_step(const DecodeStepArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename W>(W) {
    a.mamba2 ? launch_tokens<W, true>(a, stream) : launch_tokens<W, false>(a, stream);
  });
}

}  // namespace m4j::cuda
