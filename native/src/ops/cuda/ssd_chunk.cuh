// What the kernels of ssd_chunk share: how a launch is divided into blocks, and the decays of a chunk.
//
// Q = 64 tokens make a chunk. A block of a few groups of four warps walks the chunks of one sequence, one after the
// other; each group holds in registers a slab, 64 rows p of one head's state [P, N], zero where P or N end. The slabs
// of a block share B and C, so they belong to heads of one group.
//
// Where sequences and heads are too few to fill the GPU, sequences are cut into parts of `span` tokens, and two
// launches are made: the first leaves the state that each part but the last adds, starting from nothing (the first
// part: from the sequence's state), and leaves out what the end of the part has forgotten; the second folds the states
// of the parts before its own into one and computes the outputs.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "ops/cuda/chain.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/state_type.cuh"

namespace m4j::cuda::ssd {

constexpr int kChunk = 64;
constexpr int kSlab = 64;
constexpr int kSlabThreads = 128;
constexpr int kMaxSlabs = 3;  // of a block
constexpr float kForgotten = -40;  // to base 2, of a decay: 2^16 below the precision of float32

// Numbers that blocks divide have 32 bits: 64-bit divisions took microseconds of a block.
struct Plan {
  unsigned slabs;  // of a head
  unsigned slabs_per_block;
  unsigned full, fewer;  // blocks for a group of heads and a part of a sequence: with so many slabs, and with one less
  unsigned span_chunks;  // of a part
  unsigned parts;        // of the longest sequence
  bool vectors;    // rows of x, B, C and out can be accessed 16 bytes at a time
  float* states;   // [entries, H, slabs, 64, N]: the states that parts add, in the order of the lanes that hold them
  float* decays;   // [entries, H, slabs]: a part's decay of the state before it
};

__device__ inline unsigned chunks_of(int64_t tokens) { return static_cast<unsigned>((tokens + kChunk - 1) / kChunk); }

// Of the chunk before which `left` tokens are left.
__device__ inline int chunk_rows(int64_t left) { return static_cast<int>(min(max(left, int64_t{0}), int64_t{kChunk})); }

enum class Pass { kStates, kOutputs, kGatedOutputs };

// The place of a block in the launch.
struct Work {
  Segment segment;
  int64_t begin, end;     // tokens of the part, within the segment
  int64_t part, parts;    // of this segment
  int64_t entry;          // of the segment's first part
  int64_t group;          // of heads
  int64_t head, slab;     // of this thread's slab
  int64_t first_row;      // p of its row 0
  int slabs;              // of the block
  bool present;           // the last block of a group of heads may have some that do not exist

  // false if the segment has no such part. The full blocks of all come first.
  __device__ bool find(const SsdArgs& a, const Plan& plan, int which) {
    const auto groups = static_cast<unsigned>(a.n_groups), heads = static_cast<unsigned>(a.heads) / groups;
    const unsigned all_full = static_cast<unsigned>(a.segments.count) * plan.parts * groups * plan.full;
    const bool is_full = blockIdx.x < all_full;
    const unsigned index = is_full ? blockIdx.x : blockIdx.x - all_full, blocks = is_full ? plan.full : plan.fewer;
    slabs = static_cast<int>(plan.slabs_per_block) - (is_full ? 0 : 1);
    const unsigned set = index / blocks, item = set / groups;
    group = set % groups;
    part = item % plan.parts;
    segment = a.segments.items[item / plan.parts];
    parts = 1;
    begin = entry = 0;
    end = segment.tokens;
    if (plan.parts > 1) {
      const int64_t span = int64_t{plan.span_chunks} * kChunk;
      parts = (chunks_of(segment.tokens) + plan.span_chunks - 1) / plan.span_chunks;
      begin = part * span;
      end = min(begin + span, segment.tokens);
      // A segment of n > span tokens has at most 2 n / span parts, so entries do not overlap.
      const auto half_chunks = static_cast<unsigned>((segment.row - a.segments.items[0].row) / (kChunk / 2));
      entry = half_chunks / plan.span_chunks;
    }
    const unsigned before = is_full ? 0 : plan.full * plan.slabs_per_block;
    const unsigned slab_of_group = before + (index - set * blocks) * slabs + min(which, slabs - 1);
    present = slab_of_group < heads * plan.slabs;
    head = group * heads + (present ? slab_of_group / plan.slabs : 0);
    slab = slab_of_group % plan.slabs;
    first_row = slab * kSlab;
    return part < parts;
  }
  // Of the part's first token, in the batch.
  __device__ int64_t row() const { return segment.row + begin; }
  __device__ int64_t entry_index(const SsdArgs& a, const Plan& plan, int64_t of_part) const {
    return ((entry + of_part) * a.heads + head) * plan.slabs + slab;
  }
};

using cuda::exp2_fast;
__device__ inline float2 exp2_fast(float2 v) { return {exp2_fast(v.x), exp2_fast(v.y)}; }

// What one head's time steps make of a chunk. Exponents are to base 2.
template <typename T>
struct alignas(16) Decays {
  using Sum = float;
  float cum[kChunk];  // sum of dt[k] A for k <= i
  float dt[kChunk];   // 0 past the end

  __device__ void store(int lane, const float (&sum)[2], float, const float (&step)[2]) {
    reinterpret_cast<float2*>(cum)[lane] = {sum[0], sum[1]};
    reinterpret_cast<float2*>(dt)[lane] = {step[0], step[1]};
  }
  __device__ float total() const { return cum[kChunk - 1]; }
  // Of i and i + 1: exp(cum[i]), and dt[i] exp(cum[Q-1] - cum[i]).
  __device__ float2 from_start(int i) const { return exp2_fast(*reinterpret_cast<const float2*>(&cum[i])); }
  __device__ float2 to_end(int i) const {
    const float2 step = *reinterpret_cast<const float2*>(&dt[i]), sum = *reinterpret_cast<const float2*>(&cum[i]);
    return {step.x * exp2_fast(total() - sum.x), step.y * exp2_fast(total() - sum.y)};
  }
};

// The same with the exponentials computed once.
template <typename T>
struct StoredDecays : Decays<T> {
  float exponentials[2][kChunk];

  __device__ void store(int lane, const float (&sum)[2], float total, const float (&step)[2]) {
    Decays<T>::store(lane, sum, total, step);
    reinterpret_cast<float2*>(exponentials[0])[lane] = {exp2_fast(sum[0]), exp2_fast(sum[1])};
    reinterpret_cast<float2*>(exponentials[1])[lane] = {step[0] * exp2_fast(total - sum[0]),
                                                        step[1] * exp2_fast(total - sum[1])};
  }
  __device__ float2 from_start(int i) const { return *reinterpret_cast<const float2*>(&exponentials[0][i]); }
  __device__ float2 to_end(int i) const { return *reinterpret_cast<const float2*>(&exponentials[1][i]); }
};

// Sums over a chunk may be so large that one float32 would lose the digits of a small difference.
template <>
struct alignas(16) Decays<float> {
  using Sum = double;
  float cum[kChunk], cum_low[kChunk], dt[kChunk], from_start[kChunk], to_end[kChunk];

  __device__ void store(int lane, const double (&sum)[2], double total, const float (&step)[2]) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int i = 2 * lane + k;
      cum[i] = static_cast<float>(sum[k]);
      cum_low[i] = static_cast<float>(sum[k] - cum[i]);
      dt[i] = step[k];
      from_start[i] = exp2_fast(cum[i]);
      to_end[i] = step[k] * exp2_fast(static_cast<float>(total - sum[k]));
    }
  }
  // exp(cum[i] - cum[j]) dt[j]
  __device__ float weight(int i, int j) const { return dt[j] * exp2_fast(cum[i] - cum[j] + (cum_low[i] - cum_low[j])); }
};

struct Head {
  float A, dt_bias, D;

  __device__ void load(const SsdArgs& a, const Work& work) {
    A = a.A[work.head];
    dt_bias = a.dt_bias ? a.dt_bias[work.head] : 0;
    D = a.D ? a.D[work.head] : 0;
  }
};

// Time steps of the tokens 2 lane and 2 lane + 1 of a chunk, held by one warp from their loading to their use.
template <typename T>
struct TimeSteps {
  const T* source;
  T raw[2];

  __device__ TimeSteps(const SsdArgs& a, const Work& work, int lane)
      : source(static_cast<const T*>(a.dt) + (work.row() + 2 * lane) * a.ld_dt + work.head) {}

  __device__ void load(const SsdArgs& a, int rows, int lane) {
    if (2 * lane < rows) raw[0] = source[0];
    if (2 * lane + 1 < rows) raw[1] = source[a.ld_dt];
    source += kChunk * a.ld_dt;
  }

  __device__ static float step(const SsdArgs& a, float dt) {
    if (a.dt_softplus) dt = fmaxf(dt, 0) + log1p_of_exp(-fabsf(dt));
    return fminf(fmaxf(dt, a.dt_min), a.dt_max);
  }
  // log(1 + e^v), v <= 0
  __device__ static float log1p_of_exp(float v) {
    if constexpr (std::is_same_v<T, float>) {
      return log1pf(expf(v));
    } else {  // to more than 16 bits
      const float e = __expf(v);
      return e < 0.02f ? e * (1 - e * (0.5f - e * 0.333333f)) : __logf(1 + e);
    }
  }

  template <typename D>
  __device__ void to_decays(D& d, const Head& head, const SsdArgs& a, int rows, int lane) const {
    const float dt[2] = {2 * lane < rows ? step(a, to_float(raw[0]) + head.dt_bias) : 0,
                         2 * lane + 1 < rows ? step(a, to_float(raw[1]) + head.dt_bias) : 0};
    using Sum = typename D::Sum;
    const Sum A = static_cast<Sum>(head.A) * static_cast<Sum>(1.4426950408889634);
    const Sum sum = warp_running_sum(dt[0] * A + dt[1] * A, lane);
    const Sum sums[2] = {sum - dt[1] * A, sum};
    // That of the last token there is, not of a sum that adds zeros in another order.
    const Sum last[2] = {__shfl_sync(~0u, sums[0], (rows - 1) / 2), __shfl_sync(~0u, sums[1], (rows - 1) / 2)};
    const Sum total = rows % 2 == 1 ? last[0] : last[1];
    d.store(lane, {2 * lane < rows ? sums[0] : total, 2 * lane + 1 < rows ? sums[1] : total}, total, dt);
  }
};

// Lets a part that is not the last begin with the first chunk of which any slab's state at its end still knows. By a
// whole block.
template <typename T>
__device__ void skip_forgotten(const SsdArgs& a, const Plan& plan, Work& work) {
  constexpr int kBatch = 16;  // of chunks, from the last one back
  __shared__ float decays[kMaxSlabs][kBatch];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  const T* dt[kMaxSlabs];
  float A[kMaxSlabs], dt_bias[kMaxSlabs], after[kMaxSlabs] = {};
#pragma unroll
  for (int slab = 0; slab < kMaxSlabs; ++slab) {
    if (slab >= work.slabs) break;
    Work other;
    other.find(a, plan, slab);
    dt[slab] = static_cast<const T*>(a.dt) + (other.row() + 2 * lane) * a.ld_dt + other.head;
    A[slab] = a.A[other.head] * kLog2e;
    dt_bias[slab] = a.dt_bias ? a.dt_bias[other.head] : 0;
  }
  for (int left = static_cast<int>(chunks_of(work.end - work.begin)); left > 0; left -= kBatch) {
#pragma unroll
    for (int slab = 0; slab < kMaxSlabs; ++slab) {
      if (slab >= work.slabs) break;
      for (int i = warp; i < kBatch; i += warps) {
        float sum = 0;
        if (i < left) {
          const T* from = dt[slab] + static_cast<int64_t>(left - 1 - i) * kChunk * a.ld_dt;
          sum = TimeSteps<T>::step(a, to_float(from[0]) + dt_bias[slab]) +
                TimeSteps<T>::step(a, to_float(from[a.ld_dt]) + dt_bias[slab]);
        }
        sum = warp_sum(sum);
        if (lane == 0) decays[slab][i] = sum * A[slab];
      }
    }
    __syncthreads();
    bool forgotten = lane < kBatch;  // what lies before chunk left - 1 - lane
#pragma unroll
    for (int slab = 0; slab < kMaxSlabs; ++slab) {
      if (slab >= work.slabs) break;
      const float sum = warp_running_sum<kBatch>(lane < kBatch ? decays[slab][lane] : 0, lane);
      forgotten = forgotten && after[slab] + sum <= kForgotten;
      after[slab] += __shfl_sync(~0u, sum, kBatch - 1);
    }
    const unsigned lanes = __ballot_sync(~0u, forgotten);
    if (lanes != 0) {
      work.begin += int64_t{kChunk} * max(left - __ffs(static_cast<int>(lanes)), 0);
      return;
    }
    __syncthreads();
  }
}

// The state of a slab as accumulators of a warp: h[n / 8], rows 16 warp + g and + 8.
template <int kN>
struct SlabState {
  float h[kN / 8][4];

  __device__ void clear() {
#pragma unroll
    for (auto& tile : h)
#pragma unroll
      for (float& v : tile) v = 0;
  }

  // body(value, offset in the slot) for all elements there are.
  template <typename Body>
  __device__ void for_each(const SsdArgs& a, const Work& work, int warp, int lane, Body&& body) {
#pragma unroll
    for (int tile = 0; tile < kN / 8; ++tile) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t p = work.first_row + warp * 16 + lane / 4 + k / 2 * 8;
        const int64_t n = tile * 8 + lane % 4 * 2 + k % 2;
        if (p < a.headdim && n < a.d_state) body(h[tile][k], (work.head * a.headdim + p) * a.d_state + n);
      }
    }
  }
  __device__ void load(const SsdArgs& a, const Work& work, int warp, int lane) {
    clear();
    with_states(a.states, a.state_type, [&](const auto* states) {
      const auto* slot = states + work.segment.slot * a.slot_stride;
      for_each(a, work, warp, lane, [&](float& v, int64_t i) { v = to_float(slot[i]); });
    });
  }
  __device__ void store(const SsdArgs& a, const Work& work, int warp, int lane) {
    with_states(a.states, a.state_type, [&]<typename S>(S* states) {
      S* slot = states + work.segment.slot * a.slot_stride;
      for_each(a, work, warp, lane, [&](float& v, int64_t i) { slot[i] = to_state<S>(v); });
    });
  }

  __device__ void scale(float factor) {
#pragma unroll
    for (auto& tile : h)
#pragma unroll
      for (float& v : tile) v *= factor;
  }

  __device__ static float4* entry(const Plan& plan, int64_t index, int thread) {
    return reinterpret_cast<float4*>(plan.states) + index * (kSlab * kN / 4) + thread;
  }
  __device__ void load_entry(const Plan& plan, int64_t index, int thread) {
    clear();
    add_entry(plan, index, thread, 0);
  }
  // h = decay h + what a part adds.
  __device__ void add_entry(const Plan& plan, int64_t index, int thread, float decay) {
    const float4* from = entry(plan, index, thread);
#pragma unroll
    for (int tile = 0; tile < kN / 8; ++tile) {
      const float4 v = from[tile * kSlabThreads];
      h[tile][0] = decay * h[tile][0] + v.x;
      h[tile][1] = decay * h[tile][1] + v.y;
      h[tile][2] = decay * h[tile][2] + v.z;
      h[tile][3] = decay * h[tile][3] + v.w;
    }
  }
  __device__ void store_entry(const Plan& plan, int64_t index, int thread) const {
    float4* to = entry(plan, index, thread);
#pragma unroll
    for (int tile = 0; tile < kN / 8; ++tile) {
      to[tile * kSlabThreads] = {h[tile][0], h[tile][1], h[tile][2], h[tile][3]};
    }
  }
};

// The state before the part; false if this launch has nothing to do for the part after it.
template <int kN, Pass kPass>
__device__ bool begin_state(SlabState<kN>& state, const SsdArgs& a, const Plan& plan, const Work& work, int thread) {
  const int warp = thread / 32, lane = thread % 32;
  const bool last = work.part == work.parts - 1;
  state.clear();
  if (kPass == Pass::kStates) {
    if (work.present && (work.part == 0 || last)) state.load(a, work, warp, lane);
    // The other launch replaces the sequence's state while blocks of its first part still need it: the last part, which
    // has nothing to add here, keeps a copy for them.
    if (work.present && last) state.store_entry(plan, work.entry_index(a, plan, work.part), thread);
    return !last;
  }
  if (!work.present) return true;
  if (work.parts == 1) {
    state.load(a, work, warp, lane);
  } else if (work.part == 0) {
    state.load_entry(plan, work.entry_index(a, plan, work.parts - 1), thread);
  } else {
    state.load_entry(plan, work.entry_index(a, plan, 0), thread);
    for (int64_t part = 1; part < work.part; ++part) {
      const int64_t index = work.entry_index(a, plan, part);
      state.add_entry(plan, index, thread, plan.decays[index]);
    }
  }
  return true;
}

// `log2_decay` is that of the whole part.
template <int kN, Pass kPass>
__device__ void end_state(SlabState<kN>& state, const SsdArgs& a, const Plan& plan, float log2_decay, int which,
                          int thread) {
  Work work;
  work.find(a, plan, which);  // once more, rather than to hold it in registers throughout
  if (!work.present) return;
  if (kPass == Pass::kStates) {
    const int64_t index = work.entry_index(a, plan, work.part);
    state.store_entry(plan, index, thread);
    if (thread == 0) plan.decays[index] = exp2_fast(log2_decay);
  } else if (work.part == work.parts - 1) {
    state.store(a, work, thread / 32, thread % 32);
  }
}

}  // namespace m4j::cuda::ssd
