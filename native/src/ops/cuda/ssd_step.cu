// Mamba-2's state, token by token: bound by reading and writing the state.
#include "ops/cuda/cuda_ops.h"
#include "ops/cuda/launch.cuh"
#include "ops/cuda/math.cuh"
#include "ops/cuda/vec.cuh"

namespace m4j::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kLanes = 8;  // of a warp share one row [N] of the state, in interleaved quads
constexpr int kTeams = 32 / kLanes;

// Four neighbours from n on, zeros past `end`.
template <typename T>
__device__ void load_quad(const T* p, int64_t n, int64_t end, bool quads, float (&to)[4]) {
  if (quads && n < end) return load_floats(p + n, to);
#pragma unroll
  for (int k = 0; k < 4; ++k) to[k] = n + k < end ? to_float(p[n + k]) : 0.0f;
}

__device__ inline void store_quad(float* p, int64_t n, int64_t end, bool quads, const float (&from)[4]) {
  if (quads && n < end) return store_floats(p + n, from);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    if (n + k < end) p[n + k] = from[k];
  }
}

// A team of kLanes lanes walks time for kRows rows, so that many bytes are under way. Up to 32 kQuads states stay in
// registers from token to token; longer rows go through memory in parts of that size.
template <typename T, int kQuads, int kRows>
__global__ void __launch_bounds__(kThreads)
    ssd_step_kernel(const __grid_constant__ SsdArgs a, unsigned head_blocks, bool quads) {
  constexpr int kPart = 4 * kLanes * kQuads;
  const int lane = threadIdx.x % kLanes;
  const unsigned in_head = blockIdx.x % head_blocks, item = blockIdx.x / head_blocks;
  const int64_t head = item % a.heads, group = head / (a.heads / a.n_groups);
  const Segment segment = a.segments.items[item / a.heads];
  // Rows p0, p0 + kTeams, ...: those of a warp are neighbours.
  const int64_t p0 = (static_cast<int64_t>(in_head) * kWarps + threadIdx.x / 32) * kTeams * kRows +
                     threadIdx.x % 32 / kLanes;
  float* state = a.states + segment.slot * a.slot_stride + (head * a.headdim + p0) * a.d_state;
  const float A = a.A[head] * kLog2e, D = a.D ? a.D[head] : 0.0f, dt_bias = a.dt_bias ? a.dt_bias[head] : 0.0f;
  const bool in_registers = a.d_state <= kPart;

  float h[kRows][kQuads][4];
  for (int64_t t = 0; t < segment.tokens; ++t) {
    const int64_t row = segment.row + t;
    const T* B = static_cast<const T*>(a.B) + row * a.ld_bc + group * a.d_state;
    const T* C = static_cast<const T*>(a.C) + row * a.ld_bc + group * a.d_state;
    const bool load = t == 0 || !in_registers, store = t + 1 == segment.tokens || !in_registers;
    float y[kRows] = {}, x[kRows], dt = 0, decay = 0;
    for (int64_t begin = 0; begin < a.d_state; begin += kPart) {
      if (load) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int64_t end = p0 + r * kTeams < a.headdim ? a.d_state : 0;
#pragma unroll
          for (int q = 0; q < kQuads; ++q) {
            load_quad(state + r * kTeams * a.d_state, begin + 4 * (q * kLanes + lane), end, quads, h[r][q]);
          }
        }
      }
      float Bs[kQuads][4], Cs[kQuads][4];
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        load_quad(B, begin + 4 * (q * kLanes + lane), a.d_state, quads, Bs[q]);
        load_quad(C, begin + 4 * (q * kLanes + lane), a.d_state, quads, Cs[q]);
      }
      if (begin == 0) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const int64_t p = p0 + r * kTeams;
          x[r] = p < a.headdim ? to_float(static_cast<const T*>(a.x)[row * a.ld_x + head * a.headdim + p]) : 0.0f;
        }
        dt = to_float(static_cast<const T*>(a.dt)[row * a.ld_dt + head]) + dt_bias;
        if (a.dt_softplus) dt = softplus(dt);
        dt = fminf(fmaxf(dt, a.dt_min), a.dt_max);
        decay = exp2_fast(dt * A);
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t end = p0 + r * kTeams < a.headdim ? a.d_state : 0;
        const float input = dt * x[r];
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            h[r][q][k] = fmaf(decay, h[r][q][k], input * Bs[q][k]);
            y[r] = fmaf(Cs[q][k], h[r][q][k], y[r]);
          }
          if (store) {
            store_quad(state + r * kTeams * a.d_state, begin + 4 * (q * kLanes + lane), end, quads, h[r][q]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) y[r] += __shfl_xor_sync(0xffffffff, y[r], lanes);
      const int64_t p = p0 + r * kTeams;
      if (lane == 0 && p < a.headdim) {
        static_cast<T*>(a.out)[row * a.ld_out + head * a.headdim + p] = from_float<T>(fmaf(D, x[r], y[r]));
      }
    }
  }
}

template <typename T, int kQuads, int kRows>
void launch(const SsdArgs& a, cudaStream_t stream) {
  const int64_t bytes = dtype_bytes(a.dtype, 4);
  const bool quads = a.d_state % 4 == 0 && a.ld_bc % 4 == 0 && a.slot_stride % 4 == 0 && is_aligned(a.B, bytes) &&
                     is_aligned(a.C, bytes) && is_aligned(a.states, 16);
  const int64_t head_blocks = ceil_div(a.headdim, kWarps * kTeams * kRows);
  const unsigned blocks = static_cast<unsigned>(head_blocks * a.heads * a.segments.count);
  ssd_step_kernel<T, kQuads, kRows><<<blocks, kThreads, 0, stream>>>(a, static_cast<unsigned>(head_blocks), quads);
}

}  // namespace

void ssd_step(const SsdArgs& a, cudaStream_t stream) {
  with_element_type(a.dtype, [&]<typename T>(T) {
    if (a.d_state <= 32) return launch<T, 1, 4>(a, stream);
    if (a.d_state <= 64) return launch<T, 2, 2>(a, stream);
    const bool few = a.heads * a.headdim * a.segments.count < 64 * 1024;  // rows: one each fills the GPU better
    few ? launch<T, 4, 1>(a, stream) : launch<T, 4, 2>(a, stream);
  });
  check_launch("ssd_step");
}

}  // namespace m4j::cuda
