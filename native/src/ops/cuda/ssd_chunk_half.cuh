// The chunked SSD in bfloat16 and float16 on tensor cores: operands in 16 bits, sums and states in float32.
//
// The products are arranged so that a group of four warps, 16 rows p each, keeps its state h [P, N] in registers, where
// it is the accumulator of one product and, rounded, an operand of another without passing through memory:
//   M^T = (B C^T) o L^T dt + D I        [Q, Q], once a chunk: the product by both groups, the decays for each head
//   Y^T = h C^T diag(exp(cum)) + X^T M^T [P, Q]
//   h   = exp(cum[Q-1]) h + X^T diag(to_end) B
#pragma once

#include "ops/cuda/mma.cuh"
#include "ops/cuda/ssd_chunk.cuh"

namespace m4j::cuda::ssd {

template <int kN, Pass kPass>
struct HalfShared {
  static constexpr int kPanels = kN / 64;
  static constexpr bool kOutputs = kPass == Pass::kOutputs;
  alignas(1024) unsigned char B[2][kPanels * kPanelBytes];
  unsigned char X[2][kSlabsPerBlock][kPanelBytes];
  unsigned char C[kOutputs ? kPanels * kPanelBytes : 16];
  unsigned char M[kSlabsPerBlock][kOutputs ? kPanelBytes : 16];  // [j, i]
  Decays decays[2][kSlabsPerBlock];
};

// The pieces of a tile of kPanels panels that one of kThreads threads copies, chunk after chunk.
template <typename T, int kPanels, int kThreads>
struct TileCopy {
  static constexpr int kPieces = 8 * kPanels, kRowStep = kThreads / kPieces;
  static_assert(kRowStep % 8 == 0);
  const T* source;  // of the first one, in the chunk to be copied next
  int row, cols;    // its row; columns there are from it on

  __device__ TileCopy(const T* tile, int64_t ld, int64_t tile_cols, int thread)
      : source(tile + thread / kPieces * ld + thread % kPieces * 8),
        row(thread / kPieces),
        cols(static_cast<int>(min(tile_cols, int64_t{64 * kPanels})) - thread % kPieces * 8) {}

  // Rows from `rows` on and columns past the matrix become zero.
  template <bool kVectors>
  __device__ void next(unsigned char* tile, int64_t ld, int64_t rows, int thread) {
    unsigned char* to = tile + tile_offset(row, thread % kPieces);
#pragma unroll
    for (int step = 0; step < kChunk / kRowStep; ++step) {
      const bool valid = row + step * kRowStep < rows && cols > 0;
      const T* from = source + step * (kRowStep * ld);
      if constexpr (kVectors) {
        copy_async(shared_address(to) + step * kRowStep * 128, valid ? from : source, valid);
      } else {
        alignas(16) T v[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = valid && k < cols ? from[k] : from_float<T>(0);
        *reinterpret_cast<uint4*>(to + step * kRowStep * 128) = *reinterpret_cast<const uint4*>(v);
      }
    }
    source += kChunk * ld;
  }
};

// This warp's share of S^T = B C^T, with the decays of each head, to M^T. Blocks of 16 x 16 with all j > i are neither
// computed nor read.
template <typename T, int kN>
__device__ void compute_M(HalfShared<kN, Pass::kOutputs>& shared, int stage, const float (&D)[kSlabsPerBlock], int which,
                          int warp, int lane) {
  const int j_block = which == 0 ? warp : 3 - warp;  // the two warps of a scheduler share the blocks evenly
  float s[2][2][4] = {};
  const uint32_t b_rows = shared_address(shared.B[stage]), c_rows = shared_address(shared.C);
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t b[4];
    load_matrices(b, b_rows + tile_offset(j_block * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i_block = 2 * which + half;
      if (j_block > i_block) continue;
      uint32_t c[4];
      load_matrices(c, c_rows + tile_offset(i_block * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
      mma<T>(s[half][0], b, c[0], c[1]);
      mma<T>(s[half][1], b, c[2], c[3]);
    }
  }
#pragma unroll
  for (int head = 0; head < kSlabsPerBlock; ++head) {
    const Decays& d = shared.decays[stage][head];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i_block = 2 * which + half;
      if (j_block > i_block) continue;
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const int j = j_block * 16 + lane / 4 + 8 * row;
        const float cum = d.cum[j], dt = d.dt[j];
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const int i = i_block * 16 + tile * 8 + lane % 4 * 2;
          const float2 cum_i = *reinterpret_cast<const float2*>(&d.cum[i]);
          float m0 = j <= i ? s[half][tile][2 * row] * dt * exp2_fast(cum_i.x - cum) : 0;
          float m1 = j <= i + 1 ? s[half][tile][2 * row + 1] * dt * exp2_fast(cum_i.y - cum) : 0;
          if (j == i) m0 += D[head];
          if (j == i + 1) m1 += D[head];
          *reinterpret_cast<uint32_t*>(shared.M[head] + tile_offset(j, i / 8) + lane % 4 * 4) = pack<T>(m0, m1);
        }
      }
    }
  }
}

// y [i / 8]: columns i of Y^T. The warp's 16 columns of X's tile, which it alone reads, take the rounded outputs on
// their way to memory. `out` is this lane's first place there, `cols` the columns of the matrix from it on.
template <typename T, bool kVectors>
__device__ void store_outputs(const float (&y)[kChunk / 8][4], unsigned char* X, T* out, int64_t ld, int64_t rows,
                              int cols, int warp, int lane) {
#pragma unroll
  for (int tile = 0; tile < kChunk / 8; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t v = transpose_matrix(pack<T>(y[tile][2 * half], y[tile][2 * half + 1]));
      *reinterpret_cast<uint32_t*>(X + tile_offset(tile * 8 + lane / 4, warp * 2 + half) + lane % 4 * 4) = v;
    }
  }
  __syncwarp();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int row = lane / 2 + step * 16;
    alignas(16) T v[8];
    *reinterpret_cast<uint4*>(v) = *reinterpret_cast<const uint4*>(X + tile_offset(row, warp * 2 + lane % 2));
    T* to = out + step * (16 * ld);
    if (row >= rows) break;
    if constexpr (kVectors) {
      if (cols > 0) *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(v);
    } else {
#pragma unroll
      for (int k = 0; k < 8; ++k)
        if (k < cols) to[k] = v[k];
    }
  }
}

template <typename T, int kN, Pass kPass, bool kVectors>
__global__ void __launch_bounds__(kThreads, kN <= 128 ? 2 : 1)
    ssd_half_kernel(const __grid_constant__ SsdArgs a, const __grid_constant__ Plan plan) {
  constexpr bool kOutputs = kPass == Pass::kOutputs;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<HalfShared<kN, kPass>*>(shared_memory);
  const int which = threadIdx.x / kSlabThreads, thread = threadIdx.x % kSlabThreads;
  const int warp = thread / 32, lane = thread % 32;
  Work work;
  if (!work.find(a, plan, which)) return;
  if (!kOutputs && work.parts == 1) return;

  SlabState<kN> state;
  if (!begin_state<kN, kPass>(state, a, plan, work, thread)) return;

  float D[kSlabsPerBlock];
  load_D(D, a, plan);
  const int64_t row = work.segment.row + work.begin, bc = row * a.ld_bc + work.group * a.d_state;
  const int64_t col = work.head * a.headdim + work.first_row;
  TileCopy<T, kN / 64, kThreads> copy_B(static_cast<const T*>(a.B) + bc, a.ld_bc, a.d_state, threadIdx.x);
  TileCopy<T, kN / 64, kThreads> copy_C(static_cast<const T*>(a.C) + bc, a.ld_bc, a.d_state, threadIdx.x);
  TileCopy<T, 1, kSlabThreads> copy_X(static_cast<const T*>(a.x) + row * a.ld_x + col, a.ld_x,
                                      a.headdim - work.first_row, thread);
  const int out_col = warp * 16 + lane % 2 * 8;
  T* out = static_cast<T*>(a.out) + (row + lane / 2) * a.ld_out + col + out_col;
  const int out_cols = work.present ? static_cast<int>(min(a.headdim - work.first_row, int64_t{kSlab})) - out_col : 0;
  const bool computes_decays = warp == (which == 0 ? 3 : 0);  // a warp that has little of M to compute
  TimeSteps<T> time_steps(a, work, lane);
  float total = 0;

  int64_t left = work.end - work.begin;  // tokens from this chunk on
  copy_B.template next<kVectors>(shared.B[0], a.ld_bc, left, threadIdx.x);
  copy_X.template next<kVectors>(shared.X[0][which], a.ld_x, left, thread);
  if (kOutputs) copy_C.template next<kVectors>(shared.C, a.ld_bc, left, threadIdx.x);
  if (computes_decays) {
    time_steps.load(a, left, lane);
    time_steps.to_decays(shared.decays[0][which], a, left, lane);
  }
  for (int stage = 0; left > 0; stage ^= 1, left -= kChunk) {
    const int64_t next = left - kChunk;
    wait_for_copies();
    __syncthreads();
    if (next > 0) {
      copy_B.template next<kVectors>(shared.B[stage ^ 1], a.ld_bc, next, threadIdx.x);
      copy_X.template next<kVectors>(shared.X[stage ^ 1][which], a.ld_x, next, thread);
      if (computes_decays) time_steps.load(a, next, lane);
    }
    const Decays& decays = shared.decays[stage][which];
    const int k_row = lane % 8 + lane / 8 % 2 * 8;  // in a tile whose rows are summed over

    float y[kChunk / 8][4] = {};
    if constexpr (kOutputs) {
      compute_M<T, kN>(shared, stage, D, which, warp, lane);
      const uint32_t c_rows = shared_address(shared.C);
#pragma unroll
      for (int k = 0; k < kN / 16; ++k) {
        const uint32_t h[4] = {pack<T>(state.h[2 * k][0], state.h[2 * k][1]), pack<T>(state.h[2 * k][2], state.h[2 * k][3]),
                               pack<T>(state.h[2 * k + 1][0], state.h[2 * k + 1][1]),
                               pack<T>(state.h[2 * k + 1][2], state.h[2 * k + 1][3])};
#pragma unroll
        for (int i = 0; i < kChunk / 16; ++i) {
          uint32_t c[4];
          load_matrices(c, c_rows + tile_offset(i * 16 + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
          mma<T>(y[2 * i], h, c[0], c[1]);
          mma<T>(y[2 * i + 1], h, c[2], c[3]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
        const float2 decay = *reinterpret_cast<const float2*>(&decays.from_start[tile * 8 + lane % 4 * 2]);
#pragma unroll
        for (int k = 0; k < 4; ++k) y[tile][k] *= k % 2 == 0 ? decay.x : decay.y;
      }
      __syncthreads();  // M is complete, C free
      if (next > 0) copy_C.template next<kVectors>(shared.C, a.ld_bc, next, threadIdx.x);
    }
    if (next > 0 && computes_decays) time_steps.to_decays(shared.decays[stage ^ 1][which], a, next, lane);

    if (!kOutputs) total += decays.cum[kChunk - 1];
    state.scale(decays.from_start[kChunk - 1]);
    const uint32_t x_rows = shared_address(shared.X[stage][which]), b_rows = shared_address(shared.B[stage]);
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      uint32_t xt[4];
      load_matrices_transposed(xt, x_rows + tile_offset(k * 16 + lane % 8 + lane / 16 * 8, warp * 2 + lane / 8 % 2));
      if constexpr (kOutputs) {
        const uint32_t m_rows = shared_address(shared.M[which]);
#pragma unroll
        for (int i = k; i < kChunk / 16; ++i) {
          uint32_t m[4];
          load_matrices_transposed(m, m_rows + tile_offset(k * 16 + k_row, 2 * i + lane / 16));
          mma<T>(y[2 * i], xt, m[0], m[1]);
          mma<T>(y[2 * i + 1], xt, m[2], m[3]);
        }
      }
      const float2 w0 = *reinterpret_cast<const float2*>(&decays.to_end[k * 16 + lane % 4 * 2]);
      const float2 w1 = *reinterpret_cast<const float2*>(&decays.to_end[k * 16 + 8 + lane % 4 * 2]);
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const float2 v = unpack<T>(xt[q]), w = q < 2 ? w0 : w1;
        xt[q] = pack<T>(v.x * w.x, v.y * w.y);
      }
#pragma unroll
      for (int n = 0; n < kN / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, b_rows + tile_offset(k * 16 + k_row, 2 * n + lane / 16));
        mma<T>(state.h[2 * n], xt, b[0], b[1]);
        mma<T>(state.h[2 * n + 1], xt, b[2], b[3]);
      }
    }
    if constexpr (kOutputs) {
      __syncwarp();
      store_outputs<T, kVectors>(y, shared.X[stage][which], out, a.ld_out, left, out_cols, warp, lane);
      out += kChunk * a.ld_out;
    }
  }
  end_state<kN, kPass>(state, a, plan, total, which, thread);
}

}  // namespace m4j::cuda::ssd
