// What the kernels of ssd_chunk share: how a launch is divided into blocks, and the decays of a chunk.
//
// Q = 64 tokens make a chunk. A block of two groups of four warps walks the chunks of one sequence, one after the other;
// each group holds in registers the states of a slab, 64 rows p of one head's state [P, N], zero where P ends. The two
// slabs of a block share B and C, so they belong to heads of one group.
//
// Where sequences and heads are too few to fill the GPU, sequences are cut into parts of `span` tokens, and two launches
// are made: the first leaves the state that each part but the last adds, starting from nothing (the first part: from the
// sequence's state); the second folds the states of the parts before its own into one and computes the outputs.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"

namespace m4j::cuda::ssd {

constexpr int kChunk = 64;
constexpr int kSlab = 64;
constexpr int kSlabsPerBlock = 2;
constexpr int kSlabThreads = 128;
constexpr int kThreads = kSlabsPerBlock * kSlabThreads;

struct Plan {
  int64_t slabs;   // of a head
  int64_t blocks;  // that share a part of a sequence
  int64_t span;    // tokens of a part, a multiple of kChunk
  int64_t parts;   // of the longest sequence
  bool vectors;    // rows of x, B, C and out can be accessed 16 bytes at a time
  float* states;   // [entries, H, slabs, 64, N]: the states that parts add, in the order of the lanes that hold them
  float* decays;   // [entries, H, slabs]: a part's decay of the state before it
};

enum class Pass { kStates, kOutputs };

// The place of a block in the launch.
struct Work {
  Segment segment;
  int64_t begin, end;     // tokens of the part, within the segment
  int64_t part, parts;    // of this segment
  int64_t entry;          // of the segment's first part
  int64_t group;          // of heads
  int64_t head, slab;     // of this thread's slab
  int64_t first_row;      // p of its row 0
  bool present;           // the last block of a group of heads may have one slab only

  // false if the segment has no such part.
  __device__ bool find(const SsdArgs& a, const Plan& plan, int which) {
    const int64_t index = blockIdx.x, pair = index % plan.blocks;
    part = index / plan.blocks % plan.parts;
    segment = a.segments.items[index / plan.blocks / plan.parts];
    parts = (segment.tokens + plan.span - 1) / plan.span;
    begin = part * plan.span;
    end = min(begin + plan.span, segment.tokens);
    // A segment of n > span tokens has at most 2 n / span parts, so entries do not overlap.
    entry = 2 * (segment.row - a.segments.items[0].row) / plan.span;
    const int64_t heads = a.heads / a.n_groups, blocks = plan.blocks / a.n_groups;
    const int64_t slab_of_group = pair % blocks * kSlabsPerBlock + which;
    group = pair / blocks;
    present = slab_of_group < heads * plan.slabs;
    head = group * heads + (present ? slab_of_group / plan.slabs : 0);
    slab = slab_of_group % plan.slabs;
    first_row = slab * kSlab;
    return part < parts;
  }
  __device__ int64_t entry_index(const SsdArgs& a, const Plan& plan, int64_t of_part) const {
    return ((entry + of_part) * a.heads + head) * plan.slabs + slab;
  }
};

// Of both heads of the block.
__device__ inline void load_D(float (&D)[kSlabsPerBlock], const SsdArgs& a, const Plan& plan) {
#pragma unroll
  for (int which = 0; which < kSlabsPerBlock; ++which) {
    Work work;
    work.find(a, plan, which);
    D[which] = a.D ? a.D[work.head] : 0;
  }
}

__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// What one head's time steps make of a chunk. Exponents are to base 2; all the differences taken of `cum` are <= 0.
struct Decays {
  float cum[kChunk];         // sum of dt[k] A for k <= i
  float dt[kChunk];          // 0 past the end
  float from_start[kChunk];  // exp(cum[i])
  float to_end[kChunk];      // dt[i] exp(cum[Q-1] - cum[i])
};

// Time steps of the tokens 2 lane and 2 lane + 1 of a chunk, held by one warp from their loading to their use.
template <typename T>
struct TimeSteps {
  const T* source;
  float2 raw;
  float bias, A;

  __device__ TimeSteps(const SsdArgs& a, const Work& work, int lane)
      : source(static_cast<const T*>(a.dt) + (work.segment.row + work.begin + 2 * lane) * a.ld_dt + work.head),
        raw(),
        bias(a.dt_bias ? a.dt_bias[work.head] : 0),
        A(a.A[work.head] * 1.44269504f) {}

  __device__ void load(const SsdArgs& a, int64_t rows, int lane) {
    if (2 * lane < rows) raw.x = to_float(source[0]);
    if (2 * lane + 1 < rows) raw.y = to_float(source[a.ld_dt]);
    source += kChunk * a.ld_dt;
  }

  __device__ float step(const SsdArgs& a, float v) const {
    float dt = v + bias;
    if (a.dt_softplus) dt = fmaxf(dt, 0) + log1pf(expf(-fabsf(dt)));
    return fminf(fmaxf(dt, a.dt_min), a.dt_max);
  }

  __device__ void to_decays(Decays& d, const SsdArgs& a, int64_t rows, int lane) const {
    const float2 dt = {2 * lane < rows ? step(a, raw.x) : 0, 2 * lane + 1 < rows ? step(a, raw.y) : 0};
    float sum = dt.x * A + dt.y * A;
    for (int offset = 1; offset < 32; offset *= 2) {
      const float before = __shfl_up_sync(~0u, sum, offset);
      if (lane >= offset) sum += before;
    }
    float before = __shfl_up_sync(~0u, sum, 1);
    if (lane == 0) before = 0;
    const float2 cum = {before + dt.x * A, sum};
    const float total = __shfl_sync(~0u, sum, 31);
    reinterpret_cast<float2*>(d.cum)[lane] = cum;
    reinterpret_cast<float2*>(d.dt)[lane] = dt;
    reinterpret_cast<float2*>(d.from_start)[lane] = {exp2_fast(cum.x), exp2_fast(cum.y)};
    reinterpret_cast<float2*>(d.to_end)[lane] = {dt.x * exp2_fast(total - cum.x), dt.y * exp2_fast(total - cum.y)};
  }
};

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
    const float* slot = a.states + work.segment.slot * a.slot_stride;
    for_each(a, work, warp, lane, [&](float& v, int64_t i) { v = slot[i]; });
  }
  __device__ void store(const SsdArgs& a, const Work& work, int warp, int lane) {
    float* slot = a.states + work.segment.slot * a.slot_stride;
    for_each(a, work, warp, lane, [&](float& v, int64_t i) { slot[i] = v; });
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
__device__ void end_state(SlabState<kN>& state, const SsdArgs& a, const Plan& plan, float log2_decay, int which, int thread) {
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
