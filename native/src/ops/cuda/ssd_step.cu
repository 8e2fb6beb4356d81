// Mamba-2's state, token by token: bound by reading and writing the state.
#include "ops/cuda/chain.cuh"
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/state_type.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kLanes = 8;  // of a warp share one row [N] of the state
constexpr int kTeams = 32 / kLanes;

// A lane's vectors of kWidth elements in a part of a row [N]: vector q begins at kWidth (q kLanes + lane).
template <typename T, int kWidth, int kVectors>
struct RowPart {
  using Vector = Packed<T, kWidth>;
  Vector vectors[kVectors];

  static __device__ int64_t first(int q) { return kWidth * (q * kLanes + static_cast<int>(threadIdx.x) % kLanes); }

  // `left` elements of the row from p on; zeros past them.
  __device__ void load(const T* p, int64_t left) {
#pragma unroll
    for (int q = 0; q < kVectors; ++q) {
      vectors[q] = {};
      if (first(q) < left) vectors[q] = load_packed<kWidth>(p + first(q));
    }
  }
  __device__ void store(T* p, int64_t left) const {
#pragma unroll
    for (int q = 0; q < kVectors; ++q) {
      if (first(q) < left) *reinterpret_cast<Vector*>(p + first(q)) = vectors[q];
    }
  }
};

// The states of a block that starts when half of these have ended, to the second-level cache: blocks spend part of their
// time without loads under way.
template <typename S>
__device__ void fetch_later_states(const SsdArgs& a, unsigned head_blocks, int64_t rows) {
  constexpr unsigned kBlocksAhead = 330;  // of 660 that an H200 runs at a time (bench/NOTES-gpu.md)
  constexpr int64_t kLine = 128 / sizeof(S);
  const unsigned block = blockIdx.x + kBlocksAhead, heads = static_cast<unsigned>(a.heads), item = block / head_blocks;
  if (block >= gridDim.x) return;
  const int64_t row = item % heads * a.headdim + block % head_blocks * rows;
  const int64_t left = (item % heads + 1) * a.headdim - row;
  const S* states =
      static_cast<const S*>(a.states) + a.segments.items[item / heads].slot * a.slot_stride + row * a.d_state;
  for (int64_t i = threadIdx.x * kLine; i < min(rows, left) * a.d_state; i += kThreads * kLine) {
    prefetch_line(states + i);
  }
}

// A team of kLanes lanes walks time for kRows rows of the state, so that many bytes are under way. Rows of one part
// stay in registers from token to token (kResident); longer ones go through memory, part by part.
template <typename T, typename S, int kWidth, int kVectors, int kRows, bool kResident>
__global__ void __launch_bounds__(kThreads, 5)
    ssd_step_kernel(const __grid_constant__ SsdArgs a, unsigned head_blocks) {
  constexpr int kPart = kWidth * kLanes * kVectors;
  using States = RowPart<S, kWidth, kVectors>;
  using Inputs = RowPart<T, kWidth, kVectors>;
  const unsigned heads = static_cast<unsigned>(a.heads), item = blockIdx.x / head_blocks, head = item % heads;
  const Segment segment = a.segments.items[item / heads];
  const int64_t group = a.n_groups == 1 ? 0 : head / (heads / static_cast<unsigned>(a.n_groups));
  // Rows p0, p0 + kTeams, ...: those of a warp are neighbours.
  const int p0 = (blockIdx.x % head_blocks * kWarps + threadIdx.x / 32) * kTeams * kRows + threadIdx.x % 32 / kLanes;
  const int rows = static_cast<int>(a.headdim) - p0;  // left from p0 on
  S* state = static_cast<S*>(a.states) + segment.slot * a.slot_stride + (head * a.headdim + p0) * a.d_state;

  States h[kRows];
  const auto load = [&](int64_t begin) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      h[r].load(state + r * kTeams * a.d_state + begin, r * kTeams < rows ? a.d_state - begin : 0);
    }
  };
  const auto store = [&](int64_t begin) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      h[r].store(state + r * kTeams * a.d_state + begin, r * kTeams < rows ? a.d_state - begin : 0);
    }
  };
  if constexpr (kResident) load(0);
  fetch_later_states<S>(a, head_blocks, kWarps * kTeams * kRows);
  const float A = a.A[head] * kLog2e, D = a.D ? a.D[head] : 0.0f, dt_bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  let_next_start();
  wait_for_previous();
  for (int64_t row = segment.row; row < segment.row + segment.tokens; ++row) {
    const T* B = static_cast<const T*>(a.B) + row * a.ld_bc + group * a.d_state;
    const T* C = static_cast<const T*>(a.C) + row * a.ld_bc + group * a.d_state;
    const T* x = static_cast<const T*>(a.x) + row * a.ld_x + head * a.headdim + p0;
    Inputs B_part, C_part;
    B_part.load(B, a.d_state);
    C_part.load(C, a.d_state);
    float y[kRows] = {}, xs[kRows], dt = to_float(static_cast<const T*>(a.dt)[row * a.ld_dt + head]) + dt_bias;
#pragma unroll
    for (int r = 0; r < kRows; ++r) xs[r] = r * kTeams < rows ? to_float(x[r * kTeams]) : 0.0f;
    if (a.dt_softplus) dt = softplus(dt);
    dt = fminf(fmaxf(dt, a.dt_min), a.dt_max);
    const float decay = exp2_fast(dt * A);
    for (int64_t begin = 0; begin < a.d_state; begin += kPart) {
      if constexpr (!kResident) load(begin);
      if (begin > 0) {
        B_part.load(B + begin, a.d_state - begin);
        C_part.load(C + begin, a.d_state - begin);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float input = dt * xs[r];
#pragma unroll
        for (int q = 0; q < kVectors; ++q) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            const float v = fmaf(decay, h[r].vectors[q][k], input * B_part.vectors[q][k]);
            y[r] = fmaf(C_part.vectors[q][k], v, y[r]);
            h[r].vectors[q].set(k, to_state<S>(v));
          }
        }
      }
      if constexpr (kResident) break;
      store(begin);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) y[r] += __shfl_xor_sync(0xffffffff, y[r], lanes);
      if (threadIdx.x % kLanes == 0 && r * kTeams < rows) {
        T* out = static_cast<T*>(a.out) + row * a.ld_out + head * a.headdim + p0;
        out[r * kTeams] = from_float<T>(fmaf(D, xs[r], y[r]));
      }
    }
  }
  if constexpr (kResident) store(0);
}

template <typename T, typename S, int kWidth, int kVectors, int kRows, bool kResident>
void launch(const SsdArgs& a, cudaStream_t stream) {
  const int64_t head_blocks = ceil_div(a.headdim, kWarps * kTeams * kRows);
  const int64_t blocks = head_blocks * a.heads * a.segments.count;
  launch_kernel("ssd_step", ssd_step_kernel<T, S, kWidth, kVectors, kRows, kResident>,
                {.blocks = blocks, .threads = kThreads}, stream, a, static_cast<unsigned>(head_blocks));
}

}  // namespace

void ssd_step(const SsdArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename T>(T) {
    with_state_type(a.state_type, [&]<typename S>(S) {
      // Widths are 16 bytes of the state, rows so many that a lane has the same number of bytes under way.
      constexpr int kWidth = kVecOf16Bytes<S>, kMore = kWidth / 4;
      const bool vectors = a.d_state % kWidth == 0 && a.ld_bc % kWidth == 0 && a.slot_stride % kWidth == 0 &&
                           is_aligned(a.states, 16) && is_aligned(a.B, 16) && is_aligned(a.C, 16);
      const bool few = a.heads * a.headdim * a.segments.count < 64 * 1024;  // rows: one each fills the GPU better
      if (!vectors) return launch<T, S, 1, 4, 1, false>(a, stream);
      if (a.d_state <= 32) return launch<T, S, 4, 1, 4, true>(a, stream);
      if (a.d_state <= 64) return launch<T, S, kWidth, 2 / kMore, 2 * kMore, true>(a, stream);
      if (a.d_state > 128) return launch<T, S, kWidth, 4 / kMore, 1, false>(a, stream);
      few ? launch<T, S, kWidth, 4 / kMore, 1, true>(a, stream)
          : launch<T, S, kWidth, 4 / kMore, 2 * kMore, true>(a, stream);
    });
  });
}

}  // namespace m4j::cuda
