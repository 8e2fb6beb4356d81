// The selective scan's division of work, and how tiles of its inputs reach the threads.
#pragma once

#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/math.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {

namespace scan {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kTile = 16;  // tokens between two barriers

// A team of kLanes lanes shares two neighbouring channels; each lane holds kPerLane states of both.
template <int kLanes, int kPerLane>
struct Shape {
  static constexpr int lanes = kLanes;
  static constexpr int per_lane = kPerLane;
  static constexpr int states = kLanes * kPerLane;
  static constexpr int teams = 32 / kLanes;            // of a warp
  static constexpr int channels = 2 * teams * kWarps;  // of a block
  static constexpr int rounds = kTile / kLanes;        // of a tile: in each, a lane prepares and finishes one token
  // Blocks of a multiprocessor at once, which bounds registers.
  static constexpr int resident = kPerLane == 2 ? 5 : states <= 32 ? 4 : states <= 128 ? 3 : 2;
  static constexpr int bc_buffers = states > 128 ? 1 : 2;  // two need 64 KiB at 256 states

  // Lanes find runs of the states they hold at consecutive places of a row in shared memory: no bank conflicts.
  static constexpr int run = kPerLane < 4 ? kPerLane : 4;
  static constexpr bool spread = false;
  static __device__ int place(int lane, int i) { return i / run * run * kLanes + run * lane + i % run; }
  static __device__ int state(int lane, int i) { return place(lane, i); }
};

// Neighbouring states in neighbouring lanes. A usually grows with the state: the states that a lane holds i-th are then
// forgotten at about the same time.
template <typename Base>
struct Spread : Base {
  static constexpr bool spread = true;
  static constexpr int resident = Base::states == 16 ? 5 : Base::resident;
  static __device__ int state(int lane, int i) { return i * Base::lanes + lane; }
  static __device__ int position(int n) { return Base::place(n % Base::lanes, n / Base::lanes); }
};

// `wide`: fewer channels a block, where there are more lanes than channels to keep busy.
template <typename Body>
void with_shape(int64_t d_state, bool wide, Body&& body) {
  if (d_state <= 16) return wide ? body(Shape<8, 2>()) : body(Shape<4, 4>());
  if (d_state <= 32) return body(Shape<8, 4>());
  if (d_state <= 64) return body(Shape<8, 8>());
  if (d_state <= 128) return body(Shape<16, 8>());
  return body(Shape<16, 16>());
}

// How time is cut, and what chunks hand on. Walked at once: `ends` [segments, count, N, E] holds the state before a
// sequence and then what each chunk but the last adds to it, `delta_sums` [segments, count, E] the sums of delta over
// the chunks, which give their decays. In turn: `ends` [segments, row blocks, ...] holds the state behind the last chunk
// that has ended, as threads hold it.
struct Chunks {
  int64_t count, tokens;
  bool wide;  // see with_shape
  bool in_turn;
  float* ends;
  float* delta_sums;
  unsigned* next_place;  // in turn; then [segments, row blocks] how many chunks have ended; zeros before the launch
};

// The blocks of one chunk of one segment.
template <typename S>
int64_t row_blocks(int64_t d_inner, int64_t n_groups) {
  return n_groups * ((d_inner / n_groups + S::channels - 1) / S::channels);
}

// A block is one range of channels of one chunk of one segment; in turn, first chunks come first.
template <typename S>
struct Place {
  int warp, team, lane;
  int64_t segment, chunk, group;
  Segment tokens;
  int64_t begin, end;  // of the chunk, in tokens of the segment
  int64_t channel;     // the first of the team's two
  int owned;           // how many of them exist

  __device__ Place(const SelectiveScanArgs& a, const Chunks& chunks, unsigned place) {
    const int in_warp = threadIdx.x % 32;
    warp = threadIdx.x / 32;
    team = in_warp % S::teams;
    lane = in_warp / S::teams;
    const unsigned groups = static_cast<unsigned>(a.n_groups);
    const unsigned group_channels = static_cast<unsigned>(a.d_inner) / groups;
    const unsigned group_blocks = (group_channels + S::channels - 1) / S::channels, row_blocks = group_blocks * groups;
    const unsigned block = place % row_blocks, item = place / row_blocks;
    const int in_group = block % group_blocks * S::channels + 2 * (warp * S::teams + team);
    group = block / group_blocks;
    owned = max(0, min(2, static_cast<int>(group_channels) - in_group));
    channel = group * group_channels + (owned > 0 ? in_group : 0);  // always one that can be read
    const unsigned segments = static_cast<unsigned>(a.segments.count), count = static_cast<unsigned>(chunks.count);
    chunk = chunks.in_turn ? item / segments : item % count;
    segment = chunks.in_turn ? item % segments : item / count;
    tokens = a.segments.items[segment];
    begin = chunk * chunks.tokens;
    end = min(begin + chunks.tokens, tokens.tokens);
  }

  __device__ bool last_chunk() const { return end == tokens.tokens; }
};

// Neighbouring channels can be read in one access.
inline bool has_pairs(const SelectiveScanArgs& a) {
  const int64_t strides = a.ld_u | a.ld_delta | (a.z ? a.ld_z : 0) | a.ld_out | a.slot_stride;
  const int64_t bytes = dtype_bytes(a.dtype, 2);
  return a.d_inner / a.n_groups % 2 == 0 && strides % 2 == 0 && is_aligned(a.states, 8) && is_aligned(a.A, 8) &&
         is_aligned(a.u, bytes) && is_aligned(a.delta, bytes) && is_aligned(a.z, bytes) && is_aligned(a.out, bytes);
}

// Groups of four B and C can be read in one access.
inline bool has_quads(const SelectiveScanArgs& a) {
  const int64_t bytes = dtype_bytes(a.dtype, 4);
  return a.d_state % 4 == 0 && a.ld_bc % 4 == 0 && is_aligned(a.B, bytes) && is_aligned(a.C, bytes);
}

template <typename T>
__device__ Packed<T, 2> load_pair(const T* p, int owned, bool pairs) {
  Packed<T, 2> v = {};
  if (pairs) {
    if (owned > 0) v = load_packed<2>(p);
  } else {
    if (owned > 0) v.set(0, p[0]);
    if (owned > 1) v.set(1, p[1]);
  }
  return v;
}

template <typename T>
__device__ void store_pair(T* p, float v0, float v1, int owned, bool pairs) {
  if (pairs) {
    if (owned > 0) store_floats(p, {v0, v1});
  } else {
    if (owned > 0) p[0] = from_float<T>(v0);
    if (owned > 1) p[1] = from_float<T>(v1);
  }
}

// A thread's part of a tile of B and, if kMatrices is 2, C, on its way from memory to shared memory as float32
// [tokens][kMatrices][states]; zeros past the last token and state.
template <typename T, typename S, int kMatrices>
struct BcLoader {
  static constexpr int kRow = S::states / 4;  // quads
  static constexpr int kQuads = kTile * kMatrices * kRow;
  static constexpr int kPerThread = (kQuads + kThreads - 1) / kThreads;
  Packed<T, 4> quads[kPerThread];
  const T* p[kPerThread];

  __device__ BcLoader(const SelectiveScanArgs& a, const Place<S>& at, int64_t begin) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      p[i] = static_cast<const T*>(matrix(i) == 0 ? a.B : a.C) + (at.tokens.row + begin + token(i)) * a.ld_bc +
             at.group * a.d_state + state(i);
    }
  }

  __device__ void move(int64_t elements) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) p[i] += elements;
  }

  __device__ void load(int d_state, int left, bool aligned) {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      quads[i] = {};
      const bool present = (kQuads % kThreads == 0 || index(i) < kQuads) && token(i) < left;
      if (aligned) {
        if (present && state(i) < d_state) quads[i] = load_packed<4>(p[i]);
      } else {
        for (int k = 0; k < 4; ++k) {
          if (present && state(i) + k < d_state) quads[i].set(k, p[i][k]);
        }
      }
    }
  }

  __device__ void store(float* tile) const {
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (kQuads % kThreads != 0 && index(i) >= kQuads) continue;
      const Packed<T, 4>& q = quads[i];
      if constexpr (S::spread) {
#pragma unroll
        for (int k = 0; k < 4; ++k) tile[index(i) / kRow * S::states + S::position(state(i) + k)] = q[k];
      } else {
        reinterpret_cast<float4*>(tile)[index(i)] = make_float4(q[0], q[1], q[2], q[3]);
      }
    }
  }

 private:
  static __device__ int index(int i) { return i * kThreads + static_cast<int>(threadIdx.x); }
  static __device__ int state(int i) { return index(i) % kRow * 4; }
  static __device__ int matrix(int i) { return index(i) / kRow % kMatrices; }
  static __device__ int token(int i) { return index(i) / kRow / kMatrices; }
};

// A lane's tokens of a matrix [T, E], one in each round of a tile. The address moves with the tile.
template <typename T, typename S>
struct Rows {
  const T* p;
  int64_t ld;

  __device__ Rows(const void* matrix, int64_t ld, const Place<S>& at, int64_t begin)
      : p(static_cast<const T*>(matrix) + (at.tokens.row + begin + at.lane) * ld + at.channel), ld(ld) {}

  __device__ void move(int64_t tokens) { p += tokens * ld; }

  // `left` tokens of the tile exist; zeros past them.
  __device__ void load(const Place<S>& at, int left, bool pairs, Packed<T, 2> (&to)[S::rounds]) const {
    if (pairs) {
      const T* q = p;
      if (left >= kTile) {
#pragma unroll
        for (int r = 0; r < S::rounds; ++r, q += S::lanes * ld) to[r] = load_packed<2>(q);
        return;
      }
#pragma unroll
      for (int r = 0; r < S::rounds; ++r, q += S::lanes * ld) {
        to[r] = {};
        if (r * S::lanes + at.lane < left) to[r] = load_packed<2>(q);
      }
    } else {
#pragma unroll
      for (int r = 0; r < S::rounds; ++r) {
        to[r] = load_pair(p + r * S::lanes * ld, r * S::lanes + at.lane < left ? at.owned : 0, false);
      }
    }
  }
};

// delta of a lane's tokens; zero past the last one, which keeps the state as it is.
template <typename T, typename S>
__device__ void finish_delta(const Place<S>& at, int left, const Packed<T, 2> (&raw)[S::rounds], const float (&bias)[2],
                             bool softplus_too, float (&delta)[S::rounds][2]) {
#pragma unroll
  for (int r = 0; r < S::rounds; ++r) {
#pragma unroll
    for (int c = 0; c < 2; ++c) delta[r][c] = raw[r][c] + bias[c];
  }
  if (softplus_too) {
#pragma unroll
    for (int r = 0; r < S::rounds; ++r) {
#pragma unroll
      for (int c = 0; c < 2; ++c) delta[r][c] = softplus<T>(delta[r][c]);
    }
  }
  if (left >= kTile) return;
#pragma unroll
  for (int r = 0; r < S::rounds; ++r) {
    if (r * S::lanes + at.lane >= left) delta[r][0] = delta[r][1] = 0;
  }
}

// What every lane of a team needs of each token: delta and delta * u, of one channel and of the other.
// steps: [tokens][teams]
template <typename T, typename S>
__device__ void store_steps(const Place<S>& at, const float (&delta)[S::rounds][2], const Packed<T, 2> (&u)[S::rounds],
                            float4 (*steps)[S::teams]) {
#pragma unroll
  for (int r = 0; r < S::rounds; ++r) {
    steps[r * S::lanes + at.lane][at.team] =
        make_float4(delta[r][0], delta[r][0] * u[r][0], delta[r][1], delta[r][1] * u[r][1]);
  }
}

}  // namespace scan
}  // namespace m4j::cuda
