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

template <typename D, int kN, Pass kPass, int kSlabs, int kCStages>
struct HalfShared {
  static constexpr int kPanels = kN / 64;
  static constexpr bool kOutputs = kPass != Pass::kStates;
  alignas(1024) unsigned char B[2][kPanels * kPanelBytes];
  unsigned char X[2][kSlabs][kPanelBytes];
  unsigned char C[kCStages][kOutputs ? kPanels * kPanelBytes : 16];
  unsigned char M[kSlabs][kOutputs ? kPanelBytes : 16];  // [j, i]
  D decays[2][kSlabs];
  Head heads[kSlabs];
  uint64_t M_ready;  // a barrier
};

// The first of the pieces of a tile of kPanels panels that one of kThreads threads copies; more follow kRowStep rows
// apart.
template <int kPanels, int kThreads>
struct TilePieces {
  static constexpr int kPieces = 8 * kPanels, kRowStep = kThreads / kPieces;
  static_assert(kRowStep % 8 == 0 && kChunk % kRowStep == 0);
  int row, col;
  uint32_t offset;

  __device__ explicit TilePieces(int thread)
      : row(thread / kPieces), col(thread % kPieces * 8), offset(tile_offset(row, thread % kPieces)) {}

  // `from` is the place of the first. Rows from `rows` on and columns from `cols` on become zero.
  template <bool kVectors, typename T>
  __device__ void copy(unsigned char* tile, const T* from, int64_t ld, int rows, int64_t cols) const {
#pragma unroll
    for (int step = 0; step < kChunk / kRowStep; ++step) {
      const bool valid = row + step * kRowStep < rows && col < cols;
      unsigned char* to = tile + offset + step * kRowStep * 128;
      if constexpr (kVectors) {
        copy_async(shared_address(to), from, valid);
      } else {
        alignas(16) T v[8];
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = valid && col + k < cols ? from[k] : from_float<T>(0);
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(v);
      }
      from += kRowStep * ld;
    }
  }
};

constexpr int kHalfSlabs = 2;

// What a thread copies of B, C and X, chunk after chunk.
template <typename T, int kN, bool kVectors>
struct HalfCopies {
  using BCPieces = TilePieces<kN / 64, kHalfSlabs * kSlabThreads>;
  using XPieces = TilePieces<1, kSlabThreads>;
  const T* B;  // of the chunk to be copied next
  const T* X;
  int64_t x_cols;

  __device__ HalfCopies(const SsdArgs& a, const Work& work) : x_cols(a.headdim - work.first_row) {
    const BCPieces bc(threadIdx.x);
    const XPieces x(threadIdx.x % kSlabThreads);
    B = static_cast<const T*>(a.B) + (work.row() + bc.row) * a.ld_bc + work.group * a.d_state + bc.col;
    X = static_cast<const T*>(a.x) + (work.row() + x.row) * a.ld_x + work.head * a.headdim + work.first_row + x.col;
  }

  __device__ void next_B_and_X(unsigned char* B_tile, unsigned char* X_tile, const SsdArgs& a, int rows) {
    BCPieces(threadIdx.x).template copy<kVectors>(B_tile, B, a.ld_bc, rows, a.d_state);
    XPieces(threadIdx.x % kSlabThreads).template copy<kVectors>(X_tile, X, a.ld_x, rows, x_cols);
    B += kChunk * a.ld_bc;
    X += kChunk * a.ld_x;
  }
  // Of the chunk whose B was copied last.
  __device__ void next_C(unsigned char* tile, const SsdArgs& a, int rows) const {
    const T* C = B + (static_cast<const T*>(a.C) - static_cast<const T*>(a.B)) - kChunk * a.ld_bc;
    BCPieces(threadIdx.x).template copy<kVectors>(tile, C, a.ld_bc, rows, a.d_state);
  }
};

// This warp's share of S^T = B C^T, with the decays of each head, to M^T. Blocks of 16 x 16 with all j > i are neither
// computed nor read.
template <typename T, int kN>
__device__ void compute_M(HalfShared<Decays<T>, kN, Pass::kOutputs, kHalfSlabs, 1>& shared, int stage, int which,
                          int warp, int lane) {
  const int j_block = which == 0 ? warp : 3 - warp;  // the two warps of a scheduler share the blocks evenly
  float s[2][2][4] = {};
  const uint32_t b_rows = matrix_address(shared_address(shared.B[stage]), lane, 0) + j_block * 16 * 128;
  const uint32_t c_rows = matrix_address(shared_address(shared.C[0]), lane, 1) + which * 32 * 128;
#pragma unroll
  for (int k = 0; k < kN / 16; ++k) {
    uint32_t b[4];
    load_matrices(b, advance(b_rows, k));
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int i_block = 2 * which + half;
      if (j_block > i_block) continue;
      uint32_t c[4];
      load_matrices(c, advance(c_rows, k) + half * 16 * 128);
      mma<T>(s[half][0], b, c[0], c[1]);
      mma<T>(s[half][1], b, c[2], c[3]);
    }
  }
#pragma unroll
  for (int head = 0; head < kHalfSlabs; ++head) {
    const Decays<T>& d = shared.decays[stage][head];
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
          float m0 = s[half][tile][2 * row] * dt * exp2_fast(cum_i.x - cum);
          float m1 = s[half][tile][2 * row + 1] * dt * exp2_fast(cum_i.y - cum);
          if (j_block == i_block) {
            m0 = j < i ? m0 : j == i ? m0 + shared.heads[head].D : 0;
            m1 = j < i + 1 ? m1 : j == i + 1 ? m1 + shared.heads[head].D : 0;
          }
          *reinterpret_cast<uint32_t*>(shared.M[head] + tile_offset(j, i / 8) + lane % 4 * 4) = pack<T>(m0, m1);
        }
      }
    }
  }
}

// Where a lane writes outputs of its warp's 16 rows p.
template <typename T>
struct OutputRows {
  T* out;    // first place in the chunk
  int cols;  // there are from it on

  __device__ OutputRows(const SsdArgs& a, const Work& work, int warp, int lane) {
    const int64_t col = work.first_row + warp * 16 + lane % 2 * 8;
    out = static_cast<T*>(a.out) + (work.row() + lane / 2) * a.ld_out + work.head * a.headdim + col;
    cols = work.present ? static_cast<int>(min(a.headdim - col, int64_t{8})) : 0;
  }

  // y [i / 8]: columns i of Y^T. The warp's 16 columns of X's tile, which it alone reads, take the rounded outputs on
  // their way to memory.
  template <bool kVectors>
  __device__ void store(const float (&y)[kChunk / 8][4], unsigned char* X, const SsdArgs& a, int rows, int warp,
                        int lane) {
#ifdef M4J_STORE_MATRICES
    const uint32_t to = matrix_address(shared_address(X), lane, 1) ^ warp * 32;
#pragma unroll
    for (int tile = 0; tile < kChunk / 8; tile += 2) {
      store_matrices_transposed(to + tile * 8 * 128, pack<T>(y[tile][0], y[tile][1]), pack<T>(y[tile][2], y[tile][3]),
                                pack<T>(y[tile + 1][0], y[tile + 1][1]), pack<T>(y[tile + 1][2], y[tile + 1][3]));
    }
#else
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      unsigned char* to = X + tile_offset(lane / 4, warp * 2 + half) + lane % 4 * 4;
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
        const uint32_t v = pack<T>(y[tile][2 * half], y[tile][2 * half + 1]);
        *reinterpret_cast<uint32_t*>(to + tile * 8 * 128) = transpose_matrix(v);
      }
    }
#endif
    __syncwarp();
    const unsigned char* staged = X + tile_offset(lane / 2, warp * 2 + lane % 2);
    alignas(16) T v[4][8];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      *reinterpret_cast<uint4*>(v[step]) = *reinterpret_cast<const uint4*>(staged + step * 16 * 128);
    }
    const int64_t ld = 16 * a.ld_out;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const bool there = lane / 2 + step * 16 < rows;
      if constexpr (kVectors) {
        if (there && cols > 0) *reinterpret_cast<uint4*>(out) = *reinterpret_cast<const uint4*>(v[step]);
      } else {
#pragma unroll
        for (int k = 0; k < 8; ++k)
          if (there && k < cols) out[k] = v[step][k];
      }
      out += ld;
    }
  }
};

// Columns 16 k ... of X^T become those of X^T diag(to_end).
template <typename T, typename D>
__device__ void scale_columns(uint32_t (&xt)[4], const D& decays, int k, int lane) {
  const float2 w0 = decays.to_end(k * 16 + lane % 4 * 2), w1 = decays.to_end(k * 16 + 8 + lane % 4 * 2);
#pragma unroll
  for (int q = 0; q < 4; ++q) {
    const float2 v = unpack<T>(xt[q]), w = q < 2 ? w0 : w1;
    xt[q] = pack<T>(v.x * w.x, v.y * w.y);
  }
}

template <typename T, int kN, Pass kPass, bool kVectors>
__global__ void __launch_bounds__(kHalfSlabs * kSlabThreads, kN <= 128 ? 2 : 1)
    ssd_half_kernel(const __grid_constant__ SsdArgs a, const __grid_constant__ Plan plan) {
  constexpr bool kOutputs = kPass == Pass::kOutputs;
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<HalfShared<Decays<T>, kN, kPass, kHalfSlabs, 1>*>(shared_memory);
  const int which = threadIdx.x / kSlabThreads, thread = threadIdx.x % kSlabThreads;
  const int warp = thread / 32, lane = thread % 32;
  let_next_start();
  wait_for_previous();
  Work work;
  if (!work.find(a, plan, which)) return;
  if (!kOutputs && work.parts == 1) return;
  if (!kOutputs && work.part < work.parts - 1) skip_forgotten<T>(a, plan, work);

  SlabState<kN> state;
  if (!begin_state<kN, kPass>(state, a, plan, work, thread)) return;

  if (thread == 0) shared.heads[which].load(a, work);
  __syncthreads();
  HalfCopies<T, kN, kVectors> copies(a, work);
  OutputRows<T> out(a, work, warp, lane);
  const bool computes_decays = warp == (which == 0 ? 3 : 0);  // a warp that has little of M to compute
  TimeSteps<T> time_steps(a, work, lane);
  float total = 0;

  int64_t left = work.end - work.begin;  // tokens from this chunk on
  int rows = chunk_rows(left);
  copies.next_B_and_X(shared.B[0], shared.X[0][which], a, rows);
  if constexpr (kOutputs) copies.next_C(shared.C[0], a, rows);
  if (computes_decays) {
    time_steps.load(a, rows, lane);
    time_steps.to_decays(shared.decays[0][which], shared.heads[which], a, rows, lane);
  }
  for (int stage = 0; rows > 0; stage ^= 1) {
    left -= kChunk;
    const int next = chunk_rows(left);
    wait_for_copies();
    __syncthreads();
    if (next > 0) {
      copies.next_B_and_X(shared.B[stage ^ 1], shared.X[stage ^ 1][which], a, next);
      if (computes_decays) time_steps.load(a, next, lane);
    }
    const Decays<T>& decays = shared.decays[stage][which];

    float y[kChunk / 8][4] = {};
    if constexpr (kOutputs) {
      compute_M<T, kN>(shared, stage, which, warp, lane);
      const uint32_t c_rows = matrix_address(shared_address(shared.C[0]), lane, 1);
#pragma unroll
      for (int k = 0; k < kN / 16; ++k) {
        const float(&left_tile)[4] = state.h[2 * k], (&right_tile)[4] = state.h[2 * k + 1];
        const uint32_t h[4] = {pack<T>(left_tile[0], left_tile[1]), pack<T>(left_tile[2], left_tile[3]),
                               pack<T>(right_tile[0], right_tile[1]), pack<T>(right_tile[2], right_tile[3])};
#pragma unroll
        for (int i = 0; i < kChunk / 16; ++i) {
          uint32_t c[4];
          load_matrices(c, advance(c_rows, k) + i * 16 * 128);
          mma<T>(y[2 * i], h, c[0], c[1]);
          mma<T>(y[2 * i + 1], h, c[2], c[3]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {
        const float2 decay = decays.from_start(tile * 8 + lane % 4 * 2);
#pragma unroll
        for (int k = 0; k < 4; ++k) y[tile][k] *= k % 2 == 0 ? decay.x : decay.y;
      }
      __syncthreads();  // M is complete, C free
      if (next > 0) copies.next_C(shared.C[0], a, next);
    }
    if (next > 0 && computes_decays) {
      time_steps.to_decays(shared.decays[stage ^ 1][which], shared.heads[which], a, next, lane);
    }

    if (!kOutputs) total += decays.total();
    state.scale(exp2_fast(decays.total()));
    const uint32_t x_rows = matrix_address(shared_address(shared.X[stage][which]), lane, 1) ^ warp * 32;
    const uint32_t b_rows = matrix_address(shared_address(shared.B[stage]), lane, 0);
#pragma unroll
    for (int k = 0; k < kChunk / 16; ++k) {
      uint32_t xt[4];
      load_matrices_transposed(xt, x_rows + k * 16 * 128);
      if constexpr (kOutputs) {
        const uint32_t m_rows = matrix_address(shared_address(shared.M[which]), lane, 0);
#pragma unroll
        for (int i = k; i < kChunk / 16; ++i) {
          uint32_t m[4];
          load_matrices_transposed(m, advance(m_rows, i) + k * 16 * 128);
          mma<T>(y[2 * i], xt, m[0], m[1]);
          mma<T>(y[2 * i + 1], xt, m[2], m[3]);
        }
      }
      scale_columns<T>(xt, decays, k, lane);
#pragma unroll
      for (int n = 0; n < kN / 16; ++n) {
        uint32_t b[4];
        load_matrices_transposed(b, advance(b_rows, n) + k * 16 * 128);
        mma<T>(state.h[2 * n], xt, b[0], b[1]);
        mma<T>(state.h[2 * n + 1], xt, b[2], b[3]);
      }
    }
    if constexpr (kOutputs) {
      __syncwarp();
      out.template store<kVectors>(y, shared.X[stage][which], a, rows, warp, lane);
    }
    rows = next;
  }
  end_state<kN, kPass>(state, a, plan, total, which, thread);
}

}  // namespace m4j::cuda::ssd
