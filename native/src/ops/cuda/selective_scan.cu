// Selective scan: time is walked in order with the states in registers. The floor is the special-function unit, which
// gives 16 exponentials a clock and multiprocessor; all else is arranged to stay below it (bench/NOTES-gpu.md).
//
// Where sequences x channels are too few to fill the GPU, time is cut into chunks: one launch finds what each chunk
// adds to the state, a second walks all chunks at once, each from the state that the ones before it leave. Where there are
// more than enough, the chunks of a sequence take turns, so that less is left to the last blocks, which end alone.
#include <algorithm>
#include <cfloat>
#include <cmath>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/selective_scan_tiles.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

using namespace scan;

// [N, E] at `states`: the team's part of it, zeros where there is no state or channel.
template <typename S, typename V>
__device__ void load_states(const SelectiveScanArgs& a, const Place<S>& at, const V* states, bool pairs,
                            float (&h)[S::per_lane][2]) {
#pragma unroll
  for (int i = 0; i < S::per_lane; ++i) {
    const int n = S::state(at.lane, i);
    const auto v = load_pair(states + n * a.d_inner + at.channel, n < a.d_state ? at.owned : 0, pairs);
    h[i][0] = v[0];
    h[i][1] = v[1];
  }
}

template <typename S, typename V>
__device__ void store_states(const SelectiveScanArgs& a, const Place<S>& at, V* states, bool pairs,
                             const float (&h)[S::per_lane][2]) {
#pragma unroll
  for (int i = 0; i < S::per_lane; ++i) {
    const int n = S::state(at.lane, i);
    store_pair(states + n * a.d_inner + at.channel, to_float(to_state<V>(h[i][0])), to_float(to_state<V>(h[i][1])),
               n < a.d_state ? at.owned : 0, pairs);
  }
}

// Those of the sequence's slot.
template <typename S>
__device__ void load_slot(const SelectiveScanArgs& a, const Place<S>& at, bool pairs, float (&h)[S::per_lane][2]) {
  with_states(a.states, a.state_type, [&](const auto* states) {
    load_states<S>(a, at, states + at.tokens.slot * a.slot_stride, pairs, h);
  });
}

template <typename S>
__device__ void store_slot(const SelectiveScanArgs& a, const Place<S>& at, bool pairs,
                           const float (&h)[S::per_lane][2]) {
  with_states(a.states, a.state_type, [&](auto* states) {
    store_states<S>(a, at, states + at.tokens.slot * a.slot_stride, pairs, h);
  });
}

// A in units of log2, for exp2.
template <typename S>
__device__ void load_A(const SelectiveScanArgs& a, const Place<S>& at, bool pairs, float (&A)[S::per_lane][2]) {
  load_states<S>(a, at, a.A, pairs, A);
#pragma unroll
  for (int i = 0; i < S::per_lane; ++i) {
    A[i][0] *= kLog2e;
    A[i][1] *= kLog2e;
  }
}

__device__ inline void load_channels(const float* values, int64_t channel, int owned, float (&to)[2]) {
  to[0] = values && owned > 0 ? values[channel] : 0.0f;
  to[1] = values && owned > 1 ? values[channel + 1] : 0.0f;
}

// Lane l is left with the sum over the team's lanes of y[l], in y[0]. The order of additions does not depend on l, so
// results do not depend on where in a tile a token lies.
template <typename S, int kHalf = S::lanes / 2>
__device__ void reduce_scatter(float (&y)[S::lanes][2], int lane) {
  const bool upper = lane & kHalf;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float give = upper ? y[i][c] : y[i + kHalf][c];
      const float keep = upper ? y[i + kHalf][c] : y[i][c];
      y[i][c] = keep + __shfl_xor_sync(0xffffffff, give, kHalf * S::teams);
    }
  }
  if constexpr (kHalf > 1) reduce_scatter<S, kHalf / 2>(y, lane);
}

// What each chunk adds to the state, walked from its end: the input of token t is weighted with exp(A sum of the
// deltas after t). States forget: those whose weights have become negligible in the whole warp are walked no further,
// and a block without any others ends; the chunk's decay, which is smaller still, is then taken for the one reached.
// kWhole: see scan_kernel.
template <typename T, typename S, bool kWhole>
__global__ void __launch_bounds__(kThreads, S::resident)
    chunk_ends_kernel(const __grid_constant__ SelectiveScanArgs a, const __grid_constant__ Chunks chunks, bool any_pairs,
                      bool any_quads) {
  constexpr int kAtOnce = 4;  // tokens
  __shared__ alignas(16) float B_tiles[S::bc_buffers][kTile][S::states];
  __shared__ float4 all_steps[kWarps][kTile][S::teams];
  const Place<S> at(a, chunks, blockIdx.x);
  let_next_start();
  wait_for_previous();  // even if no block has anything to do
  if (at.begin >= at.end || at.last_chunk()) return;
  const bool pairs = kWhole || any_pairs, quads = kWhole || any_quads;
  float4(*steps)[S::teams] = all_steps[at.warp];

  float A[S::per_lane][2], h[S::per_lane][2] = {}, sum[2] = {}, bias[2];
  load_A<S>(a, at, pairs, A);
  load_channels(a.delta_bias, at.channel, at.owned, bias);
#pragma unroll
  for (int i = 0; i < S::per_lane; ++i) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      if (S::state(at.lane, i) >= a.d_state || c >= at.owned) A[i][c] = -FLT_MAX;  // nothing there: forgotten at once
    }
  }
  // In log2; a sum keeps 24 bits. Deltas of any sign may make a weight grow again.
  const float negligible = a.delta_softplus ? -28.0f : -INFINITY;
  bool remembered[S::per_lane];

  int64_t begin = at.begin + (at.end - at.begin - 1) / kTile * kTile;
  Rows<T, S> u_rows(a.u, a.ld_u, at, begin), delta_rows(a.delta, a.ld_delta, at, begin);
  Packed<T, 2> u[S::rounds], raw_delta[S::rounds];
  BcLoader<T, S, 1> loader(a, at, begin);
  const auto load_tile = [&](int left) {
    u_rows.load(at, left, pairs, u);
    delta_rows.load(at, left, pairs, raw_delta);
    loader.load(static_cast<int>(a.d_state), left, quads);
  };
  int left = static_cast<int>(at.end - begin);
  load_tile(left);
  for (int buffer = 0;; buffer = (buffer + 1) % S::bc_buffers, begin -= kTile, left = kTile) {
    if constexpr (S::bc_buffers == 1) __syncthreads();
    loader.store(B_tiles[buffer][0]);
    bool any = false;
#pragma unroll
    for (int i = 0; i < S::per_lane; ++i) {
      const float weight = fmaxf(A[i][0] * sum[0], A[i][1] * sum[1]);
      remembered[i] = __any_sync(0xffffffff, !(weight < negligible));
      any |= remembered[i];
    }
    if (!__syncthreads_or(any)) break;
    float delta[S::rounds][2];
    finish_delta<T, S>(at, left, raw_delta, bias, a.delta_softplus, delta);
    store_steps<T, S>(at, delta, u, steps);
    __syncwarp();
    if (begin > at.begin) {
      u_rows.move(-kTile);
      delta_rows.move(-kTile);
      loader.move(-kTile * a.ld_bc);
      load_tile(kTile);
    }
#pragma unroll
    for (int last = kTile - 1; last > 0; last -= kAtOnce) {
      float4 step[kAtOnce];  // sum of the later deltas and delta * u, of one channel and of the other
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        step[j] = steps[last - j][at.team];
        const float d0 = step[j].x, d1 = step[j].z;
        step[j].x = sum[0];
        step[j].z = sum[1];
        sum[0] += d0;
        sum[1] += d1;
      }
#pragma unroll
      for (int i = 0; i < S::per_lane; ++i) {
        if (!remembered[i]) continue;
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          const float B = B_tiles[buffer][last - j][S::place(at.lane, i)];
          h[i][0] = fmaf(exp2_fast(A[i][0] * step[j].x), step[j].y * B, h[i][0]);
          h[i][1] = fmaf(exp2_fast(A[i][1] * step[j].z), step[j].w * B, h[i][1]);
        }
      }
    }
    if (begin == at.begin) break;
    __syncwarp();
  }

  float* ends = chunks.ends + (at.segment * chunks.count + at.chunk) * a.d_state * a.d_inner;
  if (at.chunk == 0) {
    float before[S::per_lane][2];
    load_slot<S>(a, at, pairs, before);
    store_states<S>(a, at, ends, pairs, before);
  }
  store_states<S>(a, at, ends + a.d_state * a.d_inner, pairs, h);
  if (at.lane == 0) {
    float* sums = chunks.delta_sums + (at.segment * chunks.count + at.chunk) * a.d_inner + at.channel;
    store_pair(sums, sum[0], sum[1], at.owned, pairs);
  }
}

// Blocks that wait for others of their launch take places in the order in which they begin, so that those have begun.
__device__ inline unsigned take_place(unsigned* next) {
  __shared__ unsigned place;
  if (threadIdx.x == 0) place = atomicAdd(next, 1);
  __syncthreads();
  return place;
}

// The block's states for the one that goes on; `ended` tells how many chunks have.
template <typename S>
__device__ void hand_on(float4* to, unsigned* ended, unsigned chunks, const float (&h)[S::per_lane][2]) {
#pragma unroll
  for (int i = 0; i < S::per_lane; i += 2) {
    to[i / 2 * kThreads + threadIdx.x] = make_float4(h[i][0], h[i][1], h[i + 1][0], h[i + 1][1]);
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("st.release.gpu.u32 [%0], %1;" ::"l"(ended), "r"(chunks) : "memory");
}

template <typename S>
__device__ void take_over(const float4* from, const unsigned* ended, unsigned chunks, float (&h)[S::per_lane][2]) {
  if (threadIdx.x == 0) {
    unsigned v;
    do {
      asm volatile("ld.acquire.gpu.u32 %0, [%1];" : "=r"(v) : "l"(ended) : "memory");
    } while (v < chunks);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < S::per_lane; i += 2) {
    const float4 v = __ldcg(from + i / 2 * kThreads + threadIdx.x);
    h[i][0] = v.x, h[i][1] = v.y, h[i + 1][0] = v.z, h[i + 1][1] = v.w;
  }
}

// kWhole: all states, channels of a block and pairs are there and can be read in one access each.
template <typename T, typename S, bool kWhole>
__global__ void __launch_bounds__(kThreads, S::resident)
    scan_kernel(const __grid_constant__ SelectiveScanArgs a, const __grid_constant__ Chunks chunks, bool any_pairs,
                bool any_quads) {
  __shared__ alignas(16) float bc_tiles[S::bc_buffers][kTile][2][S::states];
  __shared__ float4 all_steps[kWarps][kTile][S::teams];
  unsigned place = blockIdx.x, item = 0;  // in turn: the row block of a segment
  if (chunks.in_turn) {
    wait_for_previous();
    place = take_place(chunks.next_place);
    item = place % (gridDim.x / static_cast<unsigned>(chunks.count));
  }
  float4* const handed_on = reinterpret_cast<float4*>(chunks.ends) + int64_t{item} * (S::per_lane / 2 * kThreads);
  unsigned* const ended = chunks.next_place + 1 + item;
  const Place<S> at(a, chunks, place);
  if (at.begin >= at.end) return;
  const bool pairs = kWhole || any_pairs, quads = kWhole || any_quads;
  const int owned = kWhole ? 2 : at.owned;
  float4(*steps)[S::teams] = all_steps[at.warp];

  float A[S::per_lane][2], h[S::per_lane][2], bias[2], D[2];
  load_A<S>(a, at, pairs, A);
  load_channels(a.delta_bias, at.channel, at.owned, bias);
  load_channels(a.D, at.channel, at.owned, D);
  let_next_start();
  wait_for_previous();
  if (at.chunk == 0 && (chunks.in_turn || at.last_chunk())) {
    load_slot<S>(a, at, pairs, h);
  } else if (chunks.in_turn) {
    take_over<S>(handed_on, ended, static_cast<unsigned>(at.chunk), h);
  } else {
    // The slot's state belongs to the block of the last chunk, which replaces it; others have a copy.
    const float* ends = chunks.ends + at.segment * chunks.count * a.d_state * a.d_inner;
    const float* sums = chunks.delta_sums + at.segment * chunks.count * a.d_inner + at.channel;
    load_states<S>(a, at, ends, pairs, h);
    for (int64_t i = 0; i < at.chunk; ++i) {
      float added[S::per_lane][2];
      ends += a.d_state * a.d_inner;
      load_states<S>(a, at, ends, pairs, added);
      const auto sum = load_pair(sums + i * a.d_inner, at.owned, pairs);
#pragma unroll
      for (int k = 0; k < S::per_lane; ++k) {
        h[k][0] = fmaf(exp2_fast(A[k][0] * sum[0]), h[k][0], added[k][0]);
        h[k][1] = fmaf(exp2_fast(A[k][1] * sum[1]), h[k][1], added[k][1]);
      }
    }
  }

  Rows<T, S> u_rows(a.u, a.ld_u, at, at.begin), delta_rows(a.delta, a.ld_delta, at, at.begin),
      z_rows(a.z, a.ld_z, at, at.begin);
  T* out = static_cast<T*>(a.out) + (at.tokens.row + at.begin + at.lane) * a.ld_out + at.channel;
  Packed<T, 2> next_u[S::rounds], next_delta[S::rounds], next_z[S::rounds] = {};
  BcLoader<T, S, 2> loader(a, at, at.begin);
  const auto load_tile = [&](int left) {
    u_rows.load(at, left, pairs, next_u);
    delta_rows.load(at, left, pairs, next_delta);
    if (a.z) z_rows.load(at, left, pairs, next_z);
    loader.load(static_cast<int>(a.d_state), left, quads);
    u_rows.move(kTile);
    delta_rows.move(kTile);
    z_rows.move(kTile);
    loader.move(kTile * a.ld_bc);
  };
  unsigned tiles = static_cast<unsigned>((at.end - at.begin + kTile - 1) / kTile);
  const int last_tile = static_cast<int>(at.end - at.begin - (tiles - int64_t{1}) * kTile);
  load_tile(tiles > 1 ? kTile : last_tile);
  int buffer = 0;
  for (; tiles > 0; --tiles, buffer = (buffer + 1) % S::bc_buffers) {
    const int left = tiles > 1 ? kTile : last_tile;
    if constexpr (S::bc_buffers == 1) __syncthreads();
    loader.store(bc_tiles[buffer][0][0]);
    float delta[S::rounds][2];
    finish_delta<T, S>(at, left, next_delta, bias, a.delta_softplus, delta);
    store_steps<T, S>(at, delta, next_u, steps);
    Packed<T, 2> u[S::rounds], gate[S::rounds];
#pragma unroll
    for (int r = 0; r < S::rounds; ++r) {
      u[r] = next_u[r];
      gate[r] = next_z[r];
    }
    __syncthreads();
    load_tile(tiles > 2 ? kTile : tiles == 2 ? last_tile : 0);

#pragma unroll
    for (int r = 0; r < S::rounds; ++r) {
      float y[S::lanes][2] = {};
#pragma unroll
      for (int i = 0; i < S::lanes; ++i) {
        const int t = r * S::lanes + i;
        const float4 step = steps[t][at.team];
#pragma unroll
        for (int first = 0; first < S::per_lane; first += S::run) {
          const int n = S::place(at.lane, first);
          float B[S::run], C[S::run];
          load_floats(&bc_tiles[buffer][t][0][n], B);
          load_floats(&bc_tiles[buffer][t][1][n], C);
#pragma unroll
          for (int k = 0; k < S::run; ++k) {
            float(&A_k)[2] = A[first + k], (&h_k)[2] = h[first + k];
            h_k[0] = fmaf(exp2_fast(step.x * A_k[0]), h_k[0], step.y * B[k]);
            h_k[1] = fmaf(exp2_fast(step.z * A_k[1]), h_k[1], step.w * B[k]);
            y[i][0] = fmaf(C[k], h_k[0], y[i][0]);
            y[i][1] = fmaf(C[k], h_k[1], y[i][1]);
          }
        }
      }
      reduce_scatter<S>(y, at.lane);
      y[0][0] = fmaf(D[0], u[r][0], y[0][0]);
      y[0][1] = fmaf(D[1], u[r][1], y[0][1]);
      if (a.z) {
        y[0][0] *= silu<T>(gate[r][0]);
        y[0][1] *= silu<T>(gate[r][1]);
      }
      if (r * S::lanes + at.lane < left) store_pair(out, y[0][0], y[0][1], owned, pairs);
      out += S::lanes * a.ld_out;
    }
    __syncwarp();  // steps are read before they are overwritten
  }
  if (at.last_chunk()) {
    store_slot<S>(a, at, pairs, h);
  } else if (chunks.in_turn) {
    hand_on<S>(handed_on, ended, static_cast<unsigned>(at.chunk) + 1, h);
  }
}

// Decode: one token of each segment; a thread has kChannels channels with their states, of several segments so that A
// is read less often.
template <typename T, typename V, int kChannels>
__global__ void __launch_bounds__(kThreads)
    step_kernel(const __grid_constant__ SelectiveScanArgs a, unsigned row_blocks, unsigned segments, bool quads) {
  constexpr int kStates = 16;  // in registers
  using States = Packed<V, kChannels>;
  const unsigned e = kChannels * (blockIdx.x % row_blocks * kThreads + threadIdx.x);
  if (e >= a.d_inner) return;
  const unsigned groups = static_cast<unsigned>(a.n_groups);
  const unsigned group = groups == 1 ? 0 : e / (static_cast<unsigned>(a.d_inner) / groups);
  const int64_t first = static_cast<int64_t>(blockIdx.x / row_blocks) * segments;
  const int64_t end = min(first + segments, a.segments.count);
  const bool in_registers = quads && a.d_state == kStates;
  float A[kStates][kChannels], D[kChannels], bias[kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    D[c] = a.D ? a.D[e + c] : 0.0f;
    bias[c] = a.delta_bias ? a.delta_bias[e + c] : 0.0f;
#pragma unroll
    for (int n = 0; n < kStates; ++n) A[n][c] = in_registers ? a.A[n * a.d_inner + e + c] * kLog2e : 0.0f;
  }
  let_next_start();
  for (int64_t s = first; s < end; ++s) {
    const Segment segment = a.segments.items[s];
    V* h = static_cast<V*>(a.states) + segment.slot * a.slot_stride + e;
    const T* B = static_cast<const T*>(a.B) + segment.row * a.ld_bc + group * a.d_state;
    const T* C = static_cast<const T*>(a.C) + segment.row * a.ld_bc + group * a.d_state;
    const auto load = [&](const void* matrix, int64_t ld) {
      return load_packed<kChannels>(static_cast<const T*>(matrix) + segment.row * ld + e);
    };
    States hs[kStates];
    if (in_registers) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) hs[n] = load_packed<kChannels>(h + n * a.d_inner);
    }
    wait_for_previous();
    const Packed<T, kChannels> gate = a.z ? load(a.z, a.ld_z) : Packed<T, kChannels>{};
    Packed<T, 4> Bs[kStates / 4], Cs[kStates / 4];
    if (in_registers) {
#pragma unroll
      for (int i = 0; i < kStates / 4; ++i) {
        Bs[i] = load_packed<4>(B + 4 * i);
        Cs[i] = load_packed<4>(C + 4 * i);
      }
    }
    const Packed<T, kChannels> u = load(a.u, a.ld_u), raw_delta = load(a.delta, a.ld_delta);
    float y[kChannels] = {}, delta[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      delta[c] = raw_delta[c] + bias[c];
      if (a.delta_softplus) delta[c] = softplus(delta[c]);
    }
    // A step of state n: to y, and as the pool keeps it.
    const auto step = [&](const States& before, const float (&A_n)[kChannels], float B_n, float C_n) {
      States after = {};
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        const float v = fmaf(exp2_fast(delta[c] * A_n[c]), before[c], delta[c] * u[c] * B_n);
        y[c] = fmaf(C_n, v, y[c]);
        after.set(c, to_state<V>(v));
      }
      return after;
    };
    if (in_registers) {
#pragma unroll
      for (int n = 0; n < kStates; ++n) {
        *reinterpret_cast<States*>(h + n * a.d_inner) = step(hs[n], A[n], Bs[n / 4][n % 4], Cs[n / 4][n % 4]);
      }
    } else {
#pragma unroll 8
      for (int64_t n = 0; n < a.d_state; ++n) {
        States* stored = reinterpret_cast<States*>(h + n * a.d_inner);
        float A_n[kChannels];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) A_n[c] = a.A[n * a.d_inner + e + c] * kLog2e;
        *stored = step(*stored, A_n, to_float(B[n]), to_float(C[n]));
      }
    }
    Packed<T, kChannels> out = {};
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      y[c] = fmaf(D[c], u[c], y[c]);
      if (a.z) y[c] *= silu(gate[c]);
      out.set(c, from_float<T>(y[c]));
    }
    *reinterpret_cast<Packed<T, kChannels>*>(static_cast<T*>(a.out) + segment.row * a.ld_out + e) = out;
  }
}

template <typename T, typename V, int kChannels>
void launch_step(const SelectiveScanArgs& a, bool quads, cudaStream_t stream) {
  constexpr int64_t kEnoughBlocks = 1280, kMostSegments = 8;
  const auto row_blocks = static_cast<unsigned>(ceil_div(a.d_inner, kThreads * kChannels));
  const int64_t segments = std::clamp<int64_t>(a.segments.count * row_blocks / kEnoughBlocks, 1, kMostSegments);
  const int64_t blocks = row_blocks * ceil_div(a.segments.count, segments);
  launch_kernel("selective_scan", step_kernel<T, V, kChannels>, {.blocks = blocks, .threads = kThreads}, stream, a,
                row_blocks, static_cast<unsigned>(segments), quads);
}

// Numbers of 4 bytes that chunks hand on: states, sums of deltas, the next place and how many chunks have ended.
struct Layout {
  int64_t states, sums, counters;
  int64_t bytes() const { return 4 * (states + sums + counters); }
};

struct Plan {
  Chunks chunks;
  Layout layout;
  int64_t blocks;
};

// One walk over time where it keeps most of the GPU busy, if need be with fewer channels a block; chunks take turns if
// there are about as many blocks as run at a time, or a few times more. Chunks walked at once cost nearly twice the
// exponentials. Short ones as long as their blocks run about all at a time, twice as many where they are long; but where
// they are so long that they forget most of their tokens, each costs a walk over what it remembers. No more than the
// workspace holds.
Plan make_plan(int64_t d_inner, int64_t d_state, int64_t n_groups, const Segments& segments, int64_t bytes) {
  constexpr int64_t kShortest = 32, kShort = 64, kLong = 128, kForgetful = 32768, kTurn = 256;  // tokens of a chunk
  constexpr int64_t kMostTurns = 8;
  // Of the blocks that run at a time.
  constexpr double kFewestWide = 0.25, kMostWide = 0.625, kFewest = 0.3, kEnough = 0.9, kPlenty = 8;
  const int64_t processors = device_attribute(cudaDevAttrMultiProcessorCount), longest = segments.longest;
  Plan plan{};
  Chunks& chunks = plan.chunks;
  chunks.count = 1;
  chunks.tokens = longest;
  const auto divide = [&](int64_t most) {
    chunks.tokens = ceil_div(ceil_div(longest, most), kTile) * kTile;
    chunks.count = ceil_div(longest, chunks.tokens);
  };
  with_shape(d_state, false, [&]<typename S>(S) {
    const int64_t blocks = segments.count * row_blocks<S>(d_inner, n_groups), at_once = processors * S::resident;
    const double share = static_cast<double>(blocks) / static_cast<double>(at_once);
    chunks.wide = S::states == 16 && share >= kFewestWide && share <= kMostWide;
    if (chunks.wide || share >= kFewest) return;
    const int64_t one_round = at_once / blocks, a_quarter_more = 5 * at_once / (4 * blocks);
    int64_t most = std::min(longest <= kShort * a_quarter_more ? a_quarter_more : one_round, longest / kShortest);
    const bool forgetful = longest >= one_round * kForgetful;
    if (!forgetful) most = std::max(most, std::min(2 * at_once / blocks, longest / kLong));
    divide(std::max<int64_t>(std::min(most, bytes / (4 * segments.count * (d_state + 1) * d_inner)), 1));
    if (chunks.count > 1) {
      const int64_t all = chunks.count * segments.count * d_inner;
      plan.layout = {.states = all * d_state, .sums = all, .counters = 0};
    }
  });
  with_shape(d_state, chunks.wide, [&]<typename S>(S) {
    const int64_t blocks = segments.count * row_blocks<S>(d_inner, n_groups), at_once = processors * S::resident;
    const double rounds = static_cast<double>(blocks) / static_cast<double>(at_once);
    const Layout layout = {.states = blocks * S::channels * S::states, .sums = 0, .counters = 1 + blocks};
    if (chunks.count == 1 && rounds >= kEnough && rounds <= kPlenty && longest >= 2 * kTurn && layout.bytes() <= bytes) {
      chunks.in_turn = true;
      divide(std::min(longest / kTurn, kMostTurns));
      plan.layout = layout;
    }
    plan.blocks = blocks * chunks.count;
  });
  return plan;
}

}  // namespace

int64_t selective_scan_workspace(int64_t d_inner, int64_t d_state, int64_t n_groups, const Segments& segments) {
  return make_plan(d_inner, d_state, n_groups, segments, INT64_MAX).layout.bytes();
}

void selective_scan(const SelectiveScanArgs& a, cudaStream_t stream) {
  const bool pairs = has_pairs(a), quads = has_quads(a);
  if (a.segments.longest == 1) {
    with_element_type(a.dtype, [&]<typename T>(T) {
      with_state_type(a.state_type, [&]<typename V>(V) {
        pairs ? launch_step<T, V, 2>(a, quads, stream) : launch_step<T, V, 1>(a, quads, stream);
      });
    });
    return;
  }
  Plan plan = make_plan(a.d_inner, a.d_state, a.n_groups, a.segments, a.workspace.bytes);
  Chunks& chunks = plan.chunks;
  chunks.ends = static_cast<float*>(a.workspace.data);
  chunks.delta_sums = chunks.ends + plan.layout.states;
  if (chunks.in_turn) {
    chunks.next_place = reinterpret_cast<unsigned*>(chunks.delta_sums);
    check(cudaMemsetAsync(chunks.next_place, 0, static_cast<std::size_t>(plan.layout.counters) * 4, stream),
          "cudaMemsetAsync");
  }
  const LaunchShape shape = {.blocks = plan.blocks, .threads = kThreads};
  with_element_type(a.dtype, [&]<typename T>(T) {
    with_shape(a.d_state, chunks.wide, [&]<typename S>(S) {
      const auto launch = [&](auto kernel) {
        launch_kernel("selective_scan", kernel, shape, stream, a, chunks, pairs, quads);
      };
      const auto launch_all = [&]<bool kWhole>() {
        if constexpr (S::run == 4) {  // the wide shape is not cut into chunks that are walked at once
          if (chunks.count > 1 && !chunks.in_turn) launch(chunk_ends_kernel<T, Spread<S>, kWhole>);
        }
        launch(scan_kernel<T, S, kWhole>);
      };
      if constexpr (S::states == 16) {  // of the published models
        if (pairs && quads && a.d_state == S::states && a.d_inner / a.n_groups % S::channels == 0) {
          return launch_all.template operator()<true>();
        }
      }
      launch_all.template operator()<false>();
    });
  });
}

}  // namespace m4j::cuda
