#include <algorithm>

#include "ops/cuda/decode_step.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"

namespace m4j::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 16;
constexpr int kThreads = kWarp * kWarps;
constexpr int kMaxGroups = 8;  // of Mamba-2's gated norm

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

__device__ float warp_sum(float v) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(~0u, v, offset);
  return v;
}

// All blocks of the grid; what was written before is seen after.
__device__ void grid_barrier(unsigned* counter, unsigned& target) {
  __syncthreads();
  target += gridDim.x;
  if (threadIdx.x == 0) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
    unsigned seen;
    do {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while (seen < target);
  }
  __syncthreads();
}

// Vectors in shared memory lie in blocks of 32 lanes x 8 elements, the first four elements of all lanes before the
// last four, so that a warp's 16-byte reads meet no bank twice.
__device__ int swizzled(int k) { return (k & ~255) | ((k >> 2 & 1) << 7) | ((k >> 3 & 31) << 2) | (k & 3); }
__host__ __device__ int swizzled_size(int n) { return (n + 255) & ~255; }

template <typename W>
struct Packet {  // eight weights
  static constexpr int kVectors = sizeof(W) / 2;
  uint4 raw[kVectors];
};

template <typename W>
__device__ void widen(const Packet<W>& p, float (&w)[8]) {
  const W* v = reinterpret_cast<const W*>(&p);
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i] = to_float(v[i]);
}

// Rows of a matrix [rows, columns], each by a group of kSplit warps: sum[t] = row . x[t], then done(row, sum) on every
// lane of the group's first warp.
template <typename W, int kTokens, int kSplit>
struct Rows {
  static constexpr int kGroups = kWarps / kSplit;
  static constexpr int kUnroll = sizeof(W) == 2 ? 8 : 4;
  static constexpr int kStep = kSplit * kWarp * 8;

  static __device__ int first_row() { return static_cast<int>(blockIdx.x + gridDim.x * (threadIdx.x / (kWarp * kSplit))); }

  // Asks for the first row of this group.
  static __device__ void prefetch(const void* weight, int rows, int columns) {
    const int row = first_row();
    if (row >= rows) return;
    const char* p = static_cast<const char*>(weight) + static_cast<int64_t>(row) * columns * sizeof(W);
    constexpr int kLine = 128;
    for (int offset = static_cast<int>(threadIdx.x % (kWarp * kSplit)) * kLine; offset < columns * static_cast<int>(sizeof(W));
         offset += kWarp * kSplit * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(p + offset));
    }
  }

  template <typename Done>
  static __device__ void run(const void* weight, int rows, int columns, const float* x, float* partial, Done&& done) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, part = warp % kSplit, group = warp / kSplit;
    const int ld_x = swizzled_size(columns);
    for (int row = first_row(); row < rows; row += static_cast<int>(gridDim.x) * kGroups) {
      const W* w = static_cast<const W*>(weight) + static_cast<int64_t>(row) * columns;
      float sum[kTokens] = {};
      for (int k0 = (part * kWarp + lane) * 8; k0 < columns; k0 += kStep * kUnroll) {
        Packet<W> packet[kUnroll];
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) {
          const int k = k0 + i * kStep;
          if (k < columns) {
#pragma unroll
            for (int v = 0; v < Packet<W>::kVectors; ++v) {
              packet[i].raw[v] = __ldcs(reinterpret_cast<const uint4*>(w + k) + v);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kUnroll; ++i) {
          const int k = k0 + i * kStep;
          if (k < columns) {
            float wide[8];
            widen(packet[i], wide);
#pragma unroll
            for (int t = 0; t < kTokens; ++t) {
              const float4 a = *reinterpret_cast<const float4*>(x + t * ld_x + swizzled(k));
              const float4 b = *reinterpret_cast<const float4*>(x + t * ld_x + swizzled(k) + 128);
              sum[t] = fmaf(wide[0], a.x, sum[t]);
              sum[t] = fmaf(wide[1], a.y, sum[t]);
              sum[t] = fmaf(wide[2], a.z, sum[t]);
              sum[t] = fmaf(wide[3], a.w, sum[t]);
              sum[t] = fmaf(wide[4], b.x, sum[t]);
              sum[t] = fmaf(wide[5], b.y, sum[t]);
              sum[t] = fmaf(wide[6], b.z, sum[t]);
              sum[t] = fmaf(wide[7], b.w, sum[t]);
            }
          }
        }
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) sum[t] = warp_sum(sum[t]);
      if constexpr (kSplit > 1) {
        if (lane == 0) {
#pragma unroll
          for (int t = 0; t < kTokens; ++t) partial[warp * kTokens + t] = sum[t];
        }
        const auto meet = [&] { asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kSplit * kWarp) : "memory"); };
        meet();
        if (part == 0) {
#pragma unroll
          for (int t = 0; t < kTokens; ++t) {
            sum[t] = 0;
#pragma unroll
            for (int p = 0; p < kSplit; ++p) sum[t] += partial[(warp + p) * kTokens + t];
          }
        }
        meet();
        if (part != 0) continue;
      }
      done(row, sum);
    }
  }
};

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
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    v[i] = 0;
    for (int w = 0; w < kWarps; ++w) v[i] += scratch[w * kCount + i];
  }
  __syncthreads();
}

template <typename W, int kTokens, bool kMamba2>
class Step {
 public:
  __device__ explicit Step(const DecodeStepArgs& args, float* shared) : a(args), vector(shared) {
    layout(a, &e);
    scratch = vector + kTokens * swizzled_size(max(a.d_model, a.d_inner));
    small = scratch + kWarps * max(kTokens, kMaxGroups);
  }

  __device__ void run() {
    embed();
    In::prefetch(a.layers[0].in_proj, a.in_proj_rows, a.d_model);
    barrier();
    for (int layer = 0; layer < a.n_layer; ++layer) {
      const DecodeLayer w = a.layers[layer];
      in_proj(w, layer);
      if constexpr (kMamba2) {
        Out::prefetch(w.out_proj, a.d_model, a.d_inner);
        barrier();
        ssd(w, layer);
      } else {
        X::prefetch(w.x_proj, dbc_size(a), a.d_inner);
        barrier();
        x_proj(w);
        barrier();
        Out::prefetch(w.out_proj, a.d_model, a.d_inner);
        scan(w, layer);
      }
      barrier();
      out_proj(w);
      if (layer + 1 < a.n_layer) {
        In::prefetch(a.layers[layer + 1].in_proj, a.in_proj_rows, a.d_model);
      } else if (a.logits != nullptr) {
        In::prefetch(a.lm_head, a.vocab_size, a.d_model);
      }
      barrier();
    }
    if (a.logits != nullptr) head();
  }

 private:
  using In = Rows<W, kTokens, 1>;
  using X = Rows<W, kTokens, 8>;
  using Out = Rows<W, kTokens, 2>;

  __device__ void barrier() { grid_barrier(e.barrier, target); }

  // kTokens may exceed the tokens there are; the last one is then computed again.
  __device__ int token(int t) const { return min(t, a.tokens - 1); }
  __device__ float* slot(int t) const { return a.states + a.segments[token(t)].slot * a.slot_stride; }

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
    for (int t = 0; t < kTokens; ++t) {
      float* out = vector + t * swizzled_size(a.d_model);
      for (int k = static_cast<int>(threadIdx.x); k < a.d_model; k += kThreads) {
        const float v = __ldcg(e.x + token(t) * a.d_model + k);
        squares[t] = fmaf(v, v, squares[t]);
        out[swizzled(k)] = v * weight[k];
      }
    }
    block_sums(squares, scratch);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) scale[t] = rsqrtf(squares[t] / static_cast<float>(a.d_model) + a.norm_eps);
  }

  __device__ void load_plain(const float* from, int size) {
    for (int t = 0; t < kTokens; ++t) {
      float* out = vector + t * swizzled_size(size);
      for (int k = static_cast<int>(threadIdx.x); k < size; k += kThreads) out[swizzled(k)] = __ldcg(from + token(t) * size + k);
    }
    __syncthreads();
  }

  // Norm and projection; rows that go into the convolution go on through it.
  __device__ void in_proj(const DecodeLayer& w, int layer) {
    float scale[kTokens];
    load_normed(w.norm, scale);
    const int lane = threadIdx.x % kWarp, E = a.d_inner, C = conv_channels(a), conv_begin = kMamba2 ? E : 0;
    In::run(w.in_proj, a.in_proj_rows, a.d_model, vector, scratch, [&](int row, const float (&sum)[kTokens]) {
      if (lane >= a.tokens) return;
      const float v = fmaf(pick(sum, lane), pick(scale, lane), w.in_proj_bias == nullptr ? 0.0f : w.in_proj_bias[row]);
      const int c = row - conv_begin;
      if (c >= 0 && c < C) {
        e.conv[lane * C + c] = convolve(w, slot(lane) + layer * a.layer_conv_state, C, c, v);
      } else if (kMamba2 && c >= C) {
        if (c - C < a.n_heads) e.dbc[lane * a.n_heads + c - C] = v;
      } else {
        e.z[lane * E + (kMamba2 ? row : row - E)] = v;
      }
    });
  }

  __device__ float convolve(const DecodeLayer& w, float* window, int C, int c, float v) {
    float y = w.conv_bias == nullptr ? 0.0f : w.conv_bias[c];
    const int K = a.d_conv;
    for (int k = 0; k + 1 < K; ++k) {
      const float past = window[k * C + c];
      y = fmaf(w.conv_weight[k * C + c], past, y);
      if (k > 0) window[(k - 1) * C + c] = past;
    }
    window[(K - 2) * C + c] = v;
    return silu(fmaf(w.conv_weight[(K - 1) * C + c], v, y));
  }

  __device__ void x_proj(const DecodeLayer& w) {
    load_plain(e.conv, a.d_inner);
    const int lane = threadIdx.x % kWarp, size = dbc_size(a);
    X::run(w.x_proj, size, a.d_inner, vector, scratch, [&](int row, const float (&sum)[kTokens]) {
      if (lane < a.tokens) e.dbc[lane * size + row] = pick(sum, lane);
    });
  }

  // dt_proj and the selective scan: a warp takes 8 channels, four lanes each, so that its state accesses fill sectors.
  __device__ void scan(const DecodeLayer& w, int layer) {
    constexpr int kChannels = 8, kLanes = kWarp / kChannels;
    const int E = a.d_inner, N = a.d_state, R = a.dt_rank_padded, size = dbc_size(a);
    for (int i = static_cast<int>(threadIdx.x); i < a.tokens * size; i += kThreads) small[i] = __ldcg(e.dbc + i);
    __syncthreads();
    if (a.falcon) {
      for (int t = 0; t < a.tokens; ++t) {
        norm_part(small + t * size, a.dt_rank);
        norm_part(small + t * size + R, N);
        norm_part(small + t * size + R + N, N);
      }
    }
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, c = lane % kChannels, q = lane / kChannels;
    const W* dt_proj = static_cast<const W*>(w.dt_proj);
    for (int task = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * warp; task < E / kChannels;
         task += static_cast<int>(gridDim.x) * kWarps) {
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
    __syncthreads();
  }

  // State update of Mamba-2 and the gate: a warp takes one row [N] of the state [H, P, N].
  __device__ void ssd(const DecodeLayer& w, int layer) {
    const int E = a.d_inner, N = a.d_state, H = a.n_heads, P = a.headdim, GN = a.n_groups * N, C = E + 2 * GN;
    for (int i = static_cast<int>(threadIdx.x); i < a.tokens * 2 * GN; i += kThreads) {
      small[i] = __ldcg(e.conv + i / (2 * GN) * C + E + i % (2 * GN));
    }
    __syncthreads();
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int tasks = a.tokens * E;
    for (int task = static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) * warp; task < tasks;
         task += static_cast<int>(gridDim.x) * kWarps) {
      const int t = task / E, row = task % E, head = row / P;
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
    const int lane = threadIdx.x % kWarp;
    Out::run(w.out_proj, a.d_model, a.d_inner, vector, scratch, [&](int row, const float (&sum)[kTokens]) {
      if (lane >= a.tokens) return;
      float* x = e.x + lane * a.d_model + row;
      *x = __ldcg(x) + pick(sum, lane) + (w.out_proj_bias == nullptr ? 0.0f : w.out_proj_bias[row]);
    });
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
    __syncthreads();
  }

  __device__ void head() {
    float scale[kTokens];
    load_normed(a.norm_f, scale);
    const int lane = threadIdx.x % kWarp;
    In::run(a.lm_head, a.vocab_size, a.d_model, vector, scratch, [&](int row, const float (&sum)[kTokens]) {
      if (lane < a.tokens) a.logits[static_cast<int64_t>(lane) * a.vocab_size + row] = pick(sum, lane) * pick(scale, lane);
    });
  }

  const DecodeStepArgs& a;
  Exchange e;
  float* const vector;  // shared memory: [kTokens, swizzled_size]
  float* scratch;       // of block_sums and Rows
  float* small;         // dt, B, C
  unsigned target = 0;
};

template <typename W, int kTokens, bool kMamba2>
__global__ void __launch_bounds__(kThreads, 1) decode_step_kernel(const __grid_constant__ DecodeStepArgs args) {
  extern __shared__ float4 shared[];
  Step<W, kTokens, kMamba2>(args, reinterpret_cast<float*>(shared)).run();
}

int64_t shared_bytes(const DecodeStepArgs& a, int tokens) {
  const int64_t small = a.mamba2 ? 2 * a.n_groups * a.d_state : dbc_size(a);
  return 4 * (tokens * swizzled_size(std::max(a.d_model, a.d_inner)) + kWarps * std::max(tokens, kMaxGroups) + a.tokens * small);
}

int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <typename W, int kTokens, bool kMamba2>
void launch(DecodeStepArgs a, cudaStream_t stream) {
  const auto kernel = decode_step_kernel<W, kTokens, kMamba2>;
  const int64_t bytes = shared_bytes(a, kTokens);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)), "decode_step");
  Exchange exchange;
  layout(a, &exchange);
  check(cudaMemsetAsync(exchange.barrier, 0, sizeof(unsigned), stream), "decode_step");
  void* arguments[] = {&a};
  check(cudaLaunchCooperativeKernel(kernel, dim3(static_cast<unsigned>(device_attribute(cudaDevAttrMultiProcessorCount))),
                                    dim3(kThreads), arguments, static_cast<size_t>(bytes), stream),
        "decode_step");
}

template <typename W, bool kMamba2>
void launch_tokens(const DecodeStepArgs& a, cudaStream_t stream) {
  switch (a.tokens) {
    case 1: return launch<W, 1, kMamba2>(a, stream);
    case 2: return launch<W, 2, kMamba2>(a, stream);
    default: return launch<W, kMaxDecodeTokens, kMamba2>(a, stream);
  }
}

}  // namespace

bool decode_step_fits(const DecodeStepArgs& a) {
  return a.tokens <= kMaxDecodeTokens && a.n_groups <= kMaxGroups &&
         shared_bytes(a, a.tokens <= 2 ? a.tokens : kMaxDecodeTokens) <= device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) &&
         device_attribute(cudaDevAttrCooperativeLaunch) != 0;
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
